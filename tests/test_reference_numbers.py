"""Numbers that others can compute from the published tables, without an image. Skipped where the tables are not there.

The references were computed independently of this package. Scores may differ by .03, because folds and regularisation do;
whatever is a plain count or a plain AUC must agree to the third digit."""
import numpy as np, pytest

from skincancer.data.cohorts import load_cohort
from skincancer.data.splits import holdout
from skincancer.evaluation.leakage import audit, cv_predict, fold_of, leak_table, table_encode
from skincancer.evaluation.metrics import auc, scores

LEAK_FREE = ['age', 'region', 'itch', 'grew', 'hurt', 'changed', 'bleed', 'elevation']

@pytest.fixture(scope='module')
def pad(real_data): return load_cohort('pad_ufes_20', real_data, verbose=False)

@pytest.fixture(scope='module')
def ham(real_data): return load_cohort('ham10000', real_data, verbose=False)

def floor(c, columns, flags=(), seeds=(0, 1, 2)):
    "Balanced accuracy, macro F1 and macro AUC of logistic regression by group, mean over seeds."
    y, f = c.codes(c.table.label), c.table[list(flags)].isna().to_numpy(float)
    enc = table_encode(c, columns)
    runs = [scores(y, cv_predict(lambda train: np.c_[enc(train), f], y, fold_of(c.table, seed=s), len(c.classes))) for s in seeds]
    return [np.mean([r[m] for r in runs]) for m in ('balanced_accuracy', 'macro_f1', 'macro_auc')]

def test_missing_values_of_pad(pad):
    "13 of 21 features are missing together in the same 804 rows, all benign; the flag alone detects malignancy."
    t, malignant = pad.table, pad.table.label.isin(pad.spec.malignant)
    lost = t.diameter_1.isna()
    assert lost.sum() == 804 and not malignant[lost].any()
    assert t.label[lost].value_counts().to_dict() == dict(ACK=447, SEK=188, NEV=169)
    together = [c for c in pad.spec.clinical if t.loc[lost, c].isna().all()]
    assert len(together) == 13
    assert auc(malignant.astype(int), -lost.astype(int)) == pytest.approx(.833, abs=.0006)

def test_biopsed(pad):
    malignant = pad.table.label.isin(pad.spec.malignant)
    assert auc(malignant.astype(int), pad.table.biopsed == 'true') == pytest.approx(.895, abs=.0006)
    assert (pad.table.biopsed == 'true').mean() == pytest.approx(.584, abs=.0006)

def test_pad_logistic_regression(pad):
    assert floor(pad, LEAK_FREE) == pytest.approx([.634, .561, .888], abs=.03)

def test_pad_leaks_raise_the_floor(pad):
    free, flag, biopsed = (floor(pad, c, f)[0] for c, f in ((LEAK_FREE, ()), (LEAK_FREE, ['diameter_1']), ([*LEAK_FREE, 'biopsed'], ())))
    assert [flag, biopsed] == pytest.approx([.658, .680], abs=.03) and free < flag < biopsed

def test_ham_logistic_regression(ham):
    assert floor(ham, ['age', 'sex', 'localization'], seeds=[0]) == pytest.approx([.361, .199, .764], abs=.03)

def test_ham_dx_type(ham):
    bacc, _, macro = floor(ham, ['age', 'sex', 'localization', 'dx_type'], seeds=[0])
    assert (bacc, macro) == pytest.approx((.456, .866), abs=.03)

def test_forest_on_pad_image_level_against_grouped(pad):
    """21 features, no image: .743 / .952 by image and .610 / .912 by patient; the gap must be at least .10.

    The reference does not say how large its leaves were. With leaves of one image the same forest gives about .57 to .58 by patient; leaves of two
    were chosen because they agree with the reference, so only the gap, which is .10 or more either way, is an independent check."""
    every = dict(all=dict(columns=list(pad.spec.clinical), flags=[]))
    t = leak_table(pad, every, 'rf', n_boot=200, metrics=('balanced_accuracy', 'macro_auc')).set_index(['split', 'metric'])
    assert t.estimate['image-level', 'balanced_accuracy'] == pytest.approx(.743, abs=.03)
    assert t.estimate['image-level', 'macro_auc'] == pytest.approx(.952, abs=.03) and t.estimate['grouped', 'macro_auc'] == pytest.approx(.912, abs=.03)
    assert t.estimate['grouped', 'balanced_accuracy'] == pytest.approx(.610, abs=.03)
    assert t.estimate['difference', 'balanced_accuracy'] >= .10 and t.low['difference', 'balanced_accuracy'] > .05

def test_audit_of_pad(pad):
    "All 21 features: the missing values leak. The eight: none does, `grew` and `changed` stay suspects because 'unknown' is an answer."
    split = holdout(pad.table)
    r = audit(pad, split, 'all', images=False)
    assert r.leaks == ['missing values'] and len(set(r['missing values'].offenders) - {'grew', 'changed'}) == 13
    r = audit(pad, split, images=False)
    assert r.ok and r['missing values'].verdict == 'suspect' and set(r['missing values'].offenders) == {'grew', 'changed'}
    assert audit(pad, split, [*LEAK_FREE, 'biopsed'], images=False)['known after diagnosis'].offenders == ['biopsed']
    assert 'biopsed' in r['known after diagnosis'].detail                      # known by its behaviour, not only by name

def test_audit_of_ham(ham):
    r = audit(ham, holdout(ham.table), images=False)
    assert r.ok and r['missing values'].verdict == 'none found' and 'dx_type' in r['known after diagnosis'].detail
    if 'dataset' in ham.table: assert r['source shortcut'].verdict == 'not checked' and r['source shortcut'].value > .75
