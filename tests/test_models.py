"Every encoder with every fusion, and the named architectures: one training step with random weights on small images."
import pytest, torch

from skincancer.models.encoders import ENCODERS, create_encoder
from skincancer.models.fusion import FUSIONS, create_model, head_input
from skincancer.models.zoo import ARCHITECTURES, architecture_encoder, create_architecture

N_TAB, N_CLASSES, SIZE = 7, 5, 64


def weights(module): return [p for p in module.parameters() if p.ndim > 1]


def steps(model):
    "One step; which parts of the model moved."
    torch.manual_seed(0)
    image, tab, y = torch.rand(2, 3, SIZE, SIZE), torch.rand(2, N_TAB), torch.tensor([0, 3])
    parts = dict(encoder=weights(model.encoder), head=weights(model.head))
    before = {k: [p.detach().clone() for p in ps] for k, ps in parts.items()}
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    opt.zero_grad()
    loss = torch.nn.functional.cross_entropy(model.train()(image, tab), y)
    loss.backward(); opt.step()
    assert torch.isfinite(loss) and all(torch.isfinite(p).all() for p in model.parameters())
    return {k for k, ps in parts.items() if any(not torch.equal(p, b) for p, b in zip(ps, before[k]))}


@pytest.mark.parametrize('backbone', ENCODERS)
def test_each_encoder_trains_a_step_with_each_fusion(backbone):
    encoder = create_encoder(backbone, pretrained=False, size=SIZE)
    for fusion, head in FUSIONS.items():
        moved = steps(create_model(fusion, encoder, head_input(fusion, encoder), N_TAB, N_CLASSES))
        assert moved == ({'encoder', 'head'} if head.uses_image else {'head'}), (backbone, fusion, moved)


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_the_named_architectures_train_a_step(name):
    assert steps(create_architecture(name, N_TAB, N_CLASSES, architecture_encoder(name, pretrained=False, size=SIZE))) == {'encoder', 'head'}
