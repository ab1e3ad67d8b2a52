"Chapter 05 as a user runs it: on published records, on a made-up one with external predictions, and with wrong names."
import shutil

import nbformat, numpy as np, pandas as pd, pytest

from conftest import ROOT
from skincancer.core import DataError
from skincancer.data.cohorts import load_cohort
from skincancer.evaluation.calibration import Calibrator
from skincancer.evaluation.uncertainty import Conformal
from skincancer.report import calibration_fairness as cf
from skincancer.training.runs import read_run
from test_chapters import finished, papermill

FEW = dict(n_boot=60, n_perm=19)


def published(fusion): return next(p for p in sorted((ROOT/'results').glob(f'*-simulated-*-{fusion}-*')) if p.is_dir())


def text(out):
    "All outputs of a notebook."
    cells = nbformat.read(out, 4).cells
    return '\n'.join(o.get('text') or o.get('data', {}).get('text/html') or o.get('data', {}).get('text/plain', '') for c in cells for o in c.get('outputs', []))


def external_rows(name, label, seed=0):
    "Made-up predictions of another cohort: the melanoma class gets .8 where it is a melanoma, else .05 to .1."
    p = np.random.default_rng(seed).uniform(.05, .1, len(label))
    mel = np.where(np.asarray(label) == 'melanoma', .8, p)
    rest = (1 - mel)[:, None]*np.array([.4, .3, .2, .1])
    return pd.DataFrame(dict(image_id=[f'{name}_{i}' for i in range(len(label))], fold=-1, split=f'external:{name}', p_NEV=rest[:, 0], p_MEL=mel, p_BCC=rest[:, 1], p_SEK=rest[:, 2], p_ACK=rest[:, 3]))


@pytest.fixture
def made_up(tmp_path):
    "The published simulated records, with external rows added to the multimodal one, and a copy of one of the two external cohorts."
    records, label = tmp_path/'records', ['melanoma']*30 + ['benign']*90
    for f in ('late', 'image'): shutil.copytree(published(f), records/published(f).name)
    shutil.copytree(ROOT/'results'/'splits', records/'splits')
    at = records/published('late').name/'predictions.parquet'
    pd.concat([pd.read_parquet(at), external_rows('siim_isic_2020', label), external_rows('isic2018_test', ['melanoma']*5)]).to_parquet(at, index=False)

    folder = tmp_path/'data'/'siim_isic_2020'
    (folder/'train').mkdir(parents=True)
    n = len(label)
    pd.DataFrame(dict(image_name=[f'siim_isic_2020_{i}' for i in range(n)], patient_id=[f'P{i//2}' for i in range(n)], sex=['female', 'male']*(n//2), age_approx=[45, 55, 65, 75]*(n//4),
                      anatom_site_general_challenge='torso', diagnosis='unknown', benign_malignant=['malignant' if l == 'melanoma' else 'benign' for l in label], target=[int(l == 'melanoma') for l in label])).to_csv(folder/'train.csv', index=False)
    for i in range(n): (folder/'train'/f'siim_isic_2020_{i}.jpg').write_bytes(b'not read')
    return records, tmp_path/'data'


def test_on_the_published_record(tmp_path):
    job = papermill('05_calibration_fairness', tmp_path, **FEW)
    code, said = finished(job)
    assert code == 0, said[-3000:]
    shown = text(job[1])
    assert published('late').name in shown and 'SIMULATED' in shown and 'image-only record' in shown
    assert 'no record of a mitigated model was given' in shown and 'no external predictions' in shown


@pytest.mark.parametrize('params, message', [
    (dict(run='no-such-run'), 'No run record at'),
    (dict(fusion='lately'), 'name one with the parameter `run`'),
    (dict(dataset='pad_ufes', run='x'), "Did you mean 'pad_ufes_20'?"),
    (dict(specificity=90), 'outside [0.5, 0.999]'),
    (dict(dataset='ham10000', data_dir='/nowhere'), 'skincancer_download ham10000'),
])
def test_wrong_names_stop_with_a_remedy(tmp_path, params, message):
    code, said = finished(papermill('05_calibration_fairness', tmp_path, **params))
    assert code != 0 and message in said
    assert 'run' not in params or params['run'] == 'x' or published('late').name in said


def test_external_predictions_and_a_mitigated_record(tmp_path, made_up):
    records, data = made_up
    job = papermill('05_calibration_fairness', tmp_path, records=records, data_dir=data, mitigated=published('image').name, **FEW)
    code, said = finished(job)
    assert code == 0, said[-3000:]
    shown = text(job[1])
    assert 'isic2018_test: predicted, but its labels are not here' in shown and 'skincancer_download isic2018_test' in shown
    assert 'siim_isic_2020: its labels are not the classes of the model' in shown and 'coverage, melanoma' in shown and 'foreign let in' in shown
    assert f'{published("image").name}: sampler shuffle' in shown


def test_external_scores_by_hand(made_up):
    records, data = made_up
    run = cf.find_run('simulated', 'late', records=records)
    outside, missing = cf.external_sides(run, data)
    assert list(outside) == ['siim_isic_2020'] and len(missing) == 1
    table, classes = outside['siim_isic_2020'], run.info['classes']
    assert table.label.value_counts().to_dict() == dict(benign=90, melanoma=30) and table.group_id.nunique() == 60
    task = cf.melanoma_task(table, cf.proba(table, classes), classes)
    assert task['y'].sum() == 30 and np.allclose(task['scores']['melanoma'][:30], .8)
    assert np.allclose(task['scores']['malignant'], task['scores']['melanoma'] + cf.proba(table, classes)[:, classes.index('BCC')])

    # at home every benign image has .9 and every melanoma .95: the threshold lies there, and outside nothing reaches it
    home = dict(y=np.repeat([0, 1], 40), groups=np.arange(80), scores={k: np.repeat([.9, .95], 40) for k in task['scores']})
    t = cf.external_scores(dict(validation=home, home=home, away=task), n_boot=50).set_index(['side', 'score', 'metric']).estimate
    assert t['home', 'melanoma', 'sensitivity, validation threshold'] == 1 and t['away', 'melanoma', 'sensitivity, validation threshold'] == 0
    assert t['away', 'melanoma', 'AUC'] == 1 and t['away', 'melanoma', 'specificity, validation threshold'] == 1

    # a threshold of .5 on the nonconformity lets a class in at a probability of .5: melanomas are covered, benign images have empty sets and keep their first class
    sets = Conformal('lac'); sets.thresholds, sets.n = np.full(5, .5), np.full(5, 100)
    nothing = Calibrator().fit(np.arange(5), np.eye(5))
    s = cf.shift_table(dict(away=task), nothing, sets, classes, 50).set_index('metric').estimate
    assert s['coverage, melanoma'] == 1 and s['coverage, benign'] == 1 and s['size of the sets'] == 1
    assert np.isclose(s['bias, raw'], task['scores']['melanoma'].mean() - .25) and np.isclose(s['bias, raw'], s['bias, calibrated'])


def test_labels_in_the_record_need_no_copy(made_up, tmp_path):
    records, data = made_up
    run = cf.find_run('simulated', 'late', records=records)
    at = run.folder/'predictions.parquet'
    p = pd.read_parquet(at)
    p.assign(label='benign', group_id=p.image_id).to_parquet(at, index=False)
    outside, missing = cf.external_sides(run, tmp_path/'nowhere')
    assert list(outside) == ['siim_isic_2020', 'isic2018_test'] and not missing


def test_a_copy_that_lacks_images_is_named(made_up):
    records, data = made_up
    t = pd.read_csv(data/'siim_isic_2020'/'train.csv')
    t.iloc[:100].to_csv(data/'siim_isic_2020'/'train.csv', index=False)
    run = cf.find_run('simulated', 'late', records=records)
    with pytest.raises(DataError, match='20 images of .* are not in this copy'): cf.external_sides(run, data)


def test_the_side_is_that_of_the_run(made_up):
    "What is joined here is what `Run.predictions` joins."
    run = read_run(published('late'))
    cohort = load_cohort('simulated', verbose=False)
    a = cf.side_table(run, 'test', cohort)
    b = run.predictions(cohort).query("split == 'test'").reset_index(drop=True)
    pd.testing.assert_frame_equal(a, b[list(a)])


def test_external_labels_of_other_malignancies_are_left_out():
    t = pd.DataFrame(dict(label=['mel', 'bcc', 'nv', 'akiec'], group_id=list('abcd')))
    task = cf.melanoma_task(t, np.full((4, 3), 1/3), ['bcc', 'mel', 'nv'])
    assert task['rows'].tolist() == [True, False, True, False] and task['y'].tolist() == [1, 0]


def test_on_real_predictions(tmp_path, real_data):
    job = papermill('05_calibration_fairness', tmp_path, dataset='pad_ufes_20', data_dir=real_data, **FEW)
    code, said = finished(job)
    assert code == 0, said[-3000:]
    assert 'skin_type' in text(job[1]) and 'not estimable' in text(job[1]) and 'siim_isic_2020: the record holds no predictions of it' in text(job[1])
