"Whole runs of the chapters through Papermill: parameters, places, faults, and runs that are killed."
import os, signal, subprocess, sys, time

import nbformat, pandas as pd, pytest

from conftest import ROOT
from skincancer.core import read_json

TINY = dict(n_lesions=80, epochs=2, n_boot=100, size=32)


def papermill(chapter, tmp_path, cwd=ROOT, **params):
    "Start a chapter as a user would; its process and its output notebook."
    out = tmp_path/f'out-{len(list(tmp_path.glob("out-*")))}.ipynb'
    args = [o for k, v in params.items() for o in ('-p', k, str(v))]
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | dict(SKINCANCER_CACHE=str(tmp_path/'cache'), PYTHONWARNINGS='ignore', PYTHONUNBUFFERED='1')
    command = [sys.executable, '-m', 'papermill', str(ROOT/f'nbs/{chapter}.ipynb'), str(out), '-k', 'python3', '--no-progress-bar', *args]
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True), out


def finished(job, timeout=300):
    text, _ = job[0].communicate(timeout=timeout)
    return job[0].returncode, text


def printed(out): return ''.join(o.get('text', '') for c in nbformat.read(out, 4).cells for o in c.get('outputs', []))


@pytest.mark.parametrize('params, message', [
    (dict(bakbone='convnext'), "Did you mean 'backbone'?"),
    (dict(epochs=-3), 'outside [1, 1000]'),
    (dict(epochs='many'), 'takes'),
    (dict(dataset='ham1000'), "Did you mean 'ham10000'?"),
    (dict(backbone='convnxt'), "Did you mean 'convnext'?"),
    (dict(dataset='ham10000', data_dir='/nowhere'), 'skincancer_download ham10000'),
])
def test_bad_parameters_stop_before_anything_is_trained(tmp_path, params, message):
    code, text = finished(papermill('03_multimodal', tmp_path, runs_dir=tmp_path/'runs', **params))
    assert code != 0 and message in text
    assert not (tmp_path/'runs').exists()


def test_a_run_leaves_its_record_and_is_not_repeated(tmp_path):
    job = papermill('03_multimodal', tmp_path, runs_dir=tmp_path/'runs', modality_dropout=.2, **TINY)
    code, text = finished(job)
    assert code == 0, text[-3000:]
    assert 'SIMULATED' in printed(job[1]) and 'known optimum' in printed(job[1])
    run = next((tmp_path/'runs').iterdir())
    assert {o.name for o in run.iterdir()} == {'params.json', 'metrics.json', 'predictions.parquet', 'history.csv', 'model.safetensors', 'preprocessing.json', 'split.json', 'reference.safetensors'}
    info = read_json(run/'params.json')
    assert info['encoder']['pretrained'] and info['parameters']['epochs'] == 2 and info['data']['simulated'] and info['environment']['code']
    before = (run/'predictions.parquet').stat().st_mtime_ns

    # the same parameters, from another working directory and with a relative path to the same place
    again = papermill('03_multimodal', tmp_path, cwd=ROOT/'nbs', runs_dir=os.path.relpath(tmp_path/'runs', ROOT), modality_dropout=.2, **TINY)
    code, text = finished(again)
    assert code == 0, text[-3000:]
    assert len(list((tmp_path/'runs').iterdir())) == 1 and (run/'predictions.parquet').stat().st_mtime_ns == before


def test_image_only_frozen_and_paired_comparison(tmp_path):
    job = papermill('02_baseline', tmp_path, runs_dir=tmp_path/'runs', freeze_encoder=True, **TINY)
    assert finished(job)[0] == 0
    base = next((tmp_path/'runs').iterdir()).name
    job = papermill('03_multimodal', tmp_path, runs_dir=tmp_path/'runs', freeze_encoder=True, compare_with=base, **TINY)
    code, text = finished(job)
    assert code == 0, text[-3000:]
    shown = [o['data']['text/plain'] for c in nbformat.read(job[1], 4).cells for o in c.get('outputs', []) if 'data' in o and 'text/plain' in o['data']]
    assert any('p_value' in s and 'balanced_accuracy' in s for s in shown)


def test_a_killed_run_ends_with_the_same_predictions(tmp_path):
    params = dict(TINY, epochs=4, n_lesions=300)
    whole = papermill('03_multimodal', tmp_path, runs_dir=tmp_path/'whole', **params)
    code, text = finished(whole)
    assert code == 0, text[-3000:]

    broken = papermill('03_multimodal', tmp_path, runs_dir=tmp_path/'broken', **params)
    deadline = time.time() + 240
    while not list((tmp_path).glob('broken/*/checkpoint.pt')) and time.time() < deadline: time.sleep(.05)
    os.killpg(broken[0].pid, signal.SIGKILL)
    broken[0].communicate()
    for kernel in subprocess.run(['pgrep', '-f', str(tmp_path)], capture_output=True, text=True).stdout.split(): os.kill(int(kernel), signal.SIGKILL)
    folder = next((tmp_path/'broken').iterdir())
    assert (folder/'checkpoint.pt').exists() and not (folder/'metrics.json').exists()

    code, text = finished(papermill('03_multimodal', tmp_path, runs_dir=tmp_path/'broken', **params))
    assert code == 0, text[-3000:]
    a, b = (pd.read_parquet(next((tmp_path/k).iterdir())/'predictions.parquet') for k in ('whole', 'broken'))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert (next((tmp_path/'whole').iterdir())/'history.csv').read_text() == (folder/'history.csv').read_text()
    assert not (folder/'checkpoint.pt').exists()


def test_real_tables_need_no_image(tmp_path, real_data):
    job = papermill('01_eda', tmp_path, dataset='pad_ufes_20', data_dir=real_data)
    code, text = finished(job)
    assert code == 0, text[-3000:]
    assert '0.833' in ''.join(o['data']['text/plain'] for c in nbformat.read(job[1], 4).cells for o in c.get('outputs', []) if 'data' in o)
