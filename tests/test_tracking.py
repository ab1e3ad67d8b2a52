"Tracking, where more than one process is needed: concurrent starts, and Weights & Biases without network, home or terminal."
import os, subprocess, sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest

from conftest import ROOT
from skincancer.training.tracking import experiment_folder

FIT = '''
import torch
from torch import nn
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from skincancer.training.tracking import tracker
data = [(torch.randn(2), torch.tensor(i % 2)) for i in range(8)]
dls = DataLoaders(DataLoader(data, bs=4), DataLoader(data, bs=4))
learn = Learner(dls, nn.Linear(2, 2), loss_func=nn.CrossEntropyLoss(), cbs=tracker('wandb', 'offline', dict(a=1), ['x', 'y'], root='experiments'))
with learn.no_bar(), learn.no_logging(): learn.fit(1)
'''


def test_concurrent_starts_get_folders_of_their_own(tmp_path):
    with ProcessPoolExecutor(4) as pool: made = list(pool.map(partial(_many, tmp_path), range(4)))
    names = [n for o in made for n in o]
    assert sorted(names) == sorted(f'model_experiment_{i}' for i in range(1, 101))


def _many(root, _): return [experiment_folder(root, 'model').name for _ in range(25)]


def test_wandb_needs_no_network_and_writes_into_its_folder(tmp_path):
    pytest.importorskip('wandb')
    alone = ['unshare', '-rn'] if subprocess.run(['unshare', '-rn', 'true'], capture_output=True).returncode == 0 else []
    (home := tmp_path/'home').mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith('WANDB_')} | dict(HOME=str(home), PYTHONPATH=str(ROOT), XDG_CACHE_HOME='', XDG_CONFIG_HOME='', XDG_DATA_HOME='')
    done = subprocess.run([*alone, sys.executable, '-W', 'ignore', '-c', FIT], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 'wandb' not in done.stdout + done.stderr                      # neither a question nor an advertisement
    files = [p.relative_to(tmp_path) for p in tmp_path.rglob('*') if p.is_file()]
    assert any(p.suffix == '.wandb' for p in files)
    assert all(p.parts[:2] == ('experiments', 'offline_experiment_1') for p in files if 'wandb' in str(p)), files


def test_no_tracker_no_package():
    "Importing the module, and asking for no tracker, loads neither package."
    code = ("import sys; from skincancer.training.tracking import tracker; assert tracker(None, 'x', {}, []) == []; "
            "assert not {'wandb', 'tensorboard', 'torch.utils.tensorboard'} & set(sys.modules)")
    subprocess.run([sys.executable, '-c', code], check=True, env=os.environ | dict(PYTHONPATH=str(ROOT)), timeout=120)
