"What only a GPU can show; skipped where there is none."
import numpy as np, pytest, torch
from fastai.callback.core import Callback

from skincancer.data.loaders import Augment, FusionData, fusion_dls
from skincancer.models.encoders import create_encoder
from skincancer.models.fusion import create_model, head_input
from skincancer.training.learner import Mix, fit, make_learner, predict_proba

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')


class NoSync(Callback):
    "An error where the host waits for the device, from the second epoch on (the first one warms up)."
    order = 70
    def before_train(self): torch.cuda.set_sync_debug_mode('error' if self.epoch else 'default')
    def after_train(self): torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('fusion', ['late', 'film', 'cross_attention', 'metablock', 'metanet', 'gated'])
def test_no_step_waits_for_the_host(fusion):
    rng = np.random.default_rng(0)
    data = FusionData(rng.integers(0, 256, (96, 64, 64, 3), dtype=np.uint8), rng.random((96, 9), np.float32), rng.integers(0, 3, 96))
    encoder = create_encoder('resnet10t', pretrained=False)
    dls = fusion_dls(data, range(64), range(64, 96), bs=16, augment=Augment(saturation=.1, hue=.1, blur=.5, erase=.2))
    assert dls.train.dataset.resident
    learn = make_learner(dls, create_model(fusion, encoder, head_input(fusion, encoder), 9, 3), cbs=[NoSync()])
    with learn.no_bar(), learn.no_logging(): history = fit(learn, 2)
    assert np.isfinite(history.to_numpy()).all() and predict_proba(learn.model, data, range(8)).shape == (8, 3)
