"""Training in processes that Accelerate launched, beside the same training in one.

One process by `accelerate launch`; two CPU processes (gloo) by torch's launcher, because `accelerate launch --cpu` with two of them wants MPI;
two GPUs only where there are two. A machine without them skips that test: then nothing is known about NCCL."""
import json, os, subprocess, sys

import numpy as np, pytest, torch

from conftest import ROOT

SCRIPT = '''
import json, sys, warnings
import numpy as np, torch
from pathlib import Path
from torch import nn
warnings.simplefilter('ignore')
from fastai.torch_core import rank_distrib
from skincancer.data.loaders import FusionData, fusion_dls
from skincancer.models.fusion import create_model
from skincancer.training.distributed import distributed, join_processes
from skincancer.training.learner import fit, make_learner, predict_proba

out, device = sys.argv[1:]
n = join_processes()
rng = np.random.default_rng(0)
y = rng.integers(0, 3, 400)
image = rng.normal(0, 1, (400, 8)).astype(np.float32); image[:, 0] += y == 1
tab = rng.normal(0, 1, (400, 4)).astype(np.float32); tab[:, 0] += 2*(y == 2)
data = FusionData(image, tab, y)

def without_batch_norm(m):
    for k, c in m.named_children():
        if isinstance(c, nn.BatchNorm1d): setattr(m, k, nn.LayerNorm(c.num_features))
        else: without_batch_norm(c)
    for c in m.modules():
        if isinstance(c, nn.Dropout): c.p = 0.
    return m

def run(context):
    torch.manual_seed(0)
    model = without_batch_norm(create_model('late', nn.Identity(), 8, 4, 3, width=16, dropout=0.))
    learn = make_learner(fusion_dls(data, range(300), range(300, 397), bs=50, device=device), model)
    with context(learn), learn.no_bar(), learn.no_logging(): history = fit(learn, 3, lr=1e-2)
    return dict(n=n, steps=len(learn.recorder.lrs), history=history.to_numpy().tolist(), p=predict_proba(learn.model, data, range(300, 400)).tolist())

done = dict(ours=run(distributed))
if n == 1: done['fastai'] = run(lambda l: l.distrib_ctx())
Path(f'{out}/{rank_distrib()}.json').write_text(json.dumps(done))
'''

def launch(folder, *command, device='cpu', n=1, **env):
    "Run the script in `n` processes; what each of them wrote."
    folder.mkdir()
    (folder/'script.py').write_text(SCRIPT)
    env = {k: v for k, v in os.environ.items() if k not in ('WORLD_SIZE', 'RANK', 'LOCAL_RANK')} | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1') | env
    done = subprocess.run([sys.executable, *command, folder/'script.py', folder, device], env=env, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder/f'{i}.json').read_text()) for i in range(n)]

def launcher(n): return '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(n)

ACCELERATE = '-m', 'accelerate.commands.launch'
DEFAULTS = '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no'


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    "The run in a process that nothing launched."
    return launch(tmp_path_factory.mktemp('plain')/'run')[0]['ours']


def test_one_process_launched_by_accelerate_changes_nothing(tmp_path, plain):
    "Neither our context nor fastai's own; to the bit."
    one, = launch(tmp_path/'run', *ACCELERATE, '--cpu', '--num_processes', '1', *DEFAULTS)
    assert one['ours'] == one['fastai'] == plain


def test_two_cpu_processes_equal_one(tmp_path, plain):
    "Equal steps, and equal predictions up to rounding; the processes agree to the bit."
    a, b = (o['ours'] for o in launch(tmp_path/'run', *launcher(2), n=2, ACCELERATE_USE_CPU='1'))
    assert (a['n'], a['steps']) == (2, plain['steps']) and a['p'] == b['p']
    assert np.allclose(a['p'], plain['p'], atol=1e-4)
    (loss, accuracy), (plain_loss, plain_accuracy) = (np.array(o['history'])[:, 1:].T for o in (a, plain))
    assert np.allclose(accuracy, plain_accuracy, atol=1e-9)
    assert np.allclose(loss, plain_loss, atol=.01)   # fastai's mean over processes counts the row of padding


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs; nothing is claimed about them here')
def test_two_gpus_equal_one(tmp_path):
    one, = launch(tmp_path/'one', device='cuda', CUDA_VISIBLE_DEVICES='0')
    two = launch(tmp_path/'two', *ACCELERATE, '--multi_gpu', '--num_processes', '2', *DEFAULTS, device='cuda', n=2)
    assert two[0]['ours']['n'] == 2 and two[0]['ours']['steps'] == one['ours']['steps']
    assert np.allclose(two[0]['ours']['p'], one['ours']['p'], atol=.02)   # bf16
