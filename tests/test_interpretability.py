"Chapter 06 through Papermill, and what its committed outputs claim."
import re, shutil

import nbformat, pytest

from conftest import ROOT
from test_chapters import TINY, finished, papermill, printed

SMALL = dict(n_images=10, n_valid=5, n_patients=2, n_boot=100)


@pytest.mark.parametrize('params, message', [
    (dict(dataset='ham10000'), 'give the record to explain'),
    (dict(method='gradcan'), "Did you mean 'gradcam'?"),
    (dict(n_image=10), "Did you mean 'n_images'?"),
    (dict(shift=.9), 'outside [0.05, 0.5]'),
    (dict(run='nothing'), 'No run record at'),
])
def test_bad_parameters_stop_before_anything_is_trained(tmp_path, params, message):
    code, text = finished(papermill('06_interpretability', tmp_path, runs_dir=tmp_path/'runs', **params))
    assert code != 0 and message in text
    assert not (tmp_path/'runs').exists()


def test_a_record_is_explained_and_never_trained_again(tmp_path):
    "A model of chapter 03, its published copy without weights, and a metadata-only model."
    train = lambda **more: finished(papermill('03_multimodal', tmp_path, runs_dir=tmp_path/'runs', **dict(TINY, size=64, freeze_encoder=True), **more))
    code, text = train(fusion='cross_attention')
    assert code == 0, text[-3000:]
    run = next((tmp_path/'runs').iterdir())
    explain = lambda: papermill('06_interpretability', tmp_path, run=run.name, runs_dir=tmp_path/'runs', n_lesions=80, method='layercam', **SMALL)
    job = explain()
    code, text = finished(job)
    assert code == 0, text[-3000:]
    said = printed(job[1])
    assert f'record: {run.name}' in said and 'pointing game, trained minus centre prior' in said and 'SIMULATED' in said
    assert any('metadata asks' in str(o) for c in nbformat.read(job[1], 4).cells for o in c.get('outputs', [])), 'cross-attention maps are scored too'
    assert len(list((tmp_path/'runs').iterdir())) == 1

    weights = run/'model.safetensors'
    shutil.move(weights, tmp_path/'kept')
    code, text = finished(explain())
    assert code != 0 and 'has no weights' in text
    shutil.move(tmp_path/'kept', weights)


def test_real_images_without_masks(tmp_path, real_data):
    code, text = finished(papermill('03_multimodal', tmp_path, dataset='pad_ufes_20', data_dir=real_data, runs_dir=tmp_path/'runs', size=64, freeze_encoder=True, epochs=2, n_boot=100))
    assert code == 0, text[-3000:]
    run = next((tmp_path/'runs').iterdir())
    job = papermill('06_interpretability', tmp_path, dataset='pad_ufes_20', data_dir=real_data, run=run, runs_dir=tmp_path/'runs', **SMALL | dict(n_images=18))
    code, text = finished(job)
    assert code == 0, text[-3000:]
    assert 'no lesion masks' in printed(job[1])


def test_the_committed_chapter_holds_its_claims():
    "The map of the trained simulated model beats the centre prior, and that of random weights does not."
    said = printed(ROOT/'nbs/06_interpretability.ipynb')
    low = {m[1]: float(m[2]) for m in re.finditer(r'pointing game, (.+): [+-][\d.]+ \[([+-][\d.]+), ', said)}
    assert low['trained minus centre prior'] > 0
    assert low['trained minus randomised weights'] > 0
    assert low['centre prior minus randomised weights'] > 0


def test_pictures_are_simulated_and_small():
    nb = nbformat.read(ROOT/'nbs/06_interpretability.ipynb', 4)
    assert '(SIMULATED: no real patient)' in printed(ROOT/'nbs/06_interpretability.ipynb')
    for c in nb.cells:
        for o in c.get('outputs', []): assert len((o.get('data') or {}).get('image/png', '')) < 150*1024*4/3
