"Fairness over many simulated studies, and on the real tables where they are there."
import numpy as np, pandas as pd, pytest

from skincancer.data.cohorts import load_cohort
from skincancer.data.simulate import SIM_CLASSES, Simulation, clinical_table, draw_lesions, posterior
from skincancer.evaluation.fairness import age_band, gap_table, gap_test, intersectional, skin_type_band, subgroup_table
from skincancer.evaluation.leakage import cv_predict, fold_of, table_encode

def ideal(s):
    "Predictions of the ideal observer, one row per image."
    lesions = draw_lesions(s)
    t = clinical_table(s, lesions).rename(columns=dict(lesion_id='group_id', diagnosis='label'))
    t[[f'p_{c}' for c in SIM_CLASSES]] = posterior(s, lesions)
    return t.iloc[np.repeat(np.arange(s.n_lesions), lesions.n_images)].reset_index(drop=True)

@pytest.mark.parametrize('metric', ['sensitivity', 'false_positive_rate', 'auc', 'ece', 'balanced_accuracy'])
def test_the_permutation_test_keeps_its_level(metric):
    p = [gap_test(ideal(Simulation(n_lesions=400, seed=i)), 'skin_type', SIM_CLASSES, metric, n_perm=79, n_boot=2).p for i in range(80)]
    assert np.mean(np.array(p) <= .05) <= .12 and .3 < np.mean(p) < .7

def test_it_has_power():
    p = [gap_test(ideal(Simulation(n_lesions=3000, seed=i, group_gap=.8)), 'skin_type', SIM_CLASSES, n_perm=79, n_boot=2).p for i in range(10)]
    assert np.mean(np.array(p) <= .05) >= .9

def test_row_order_and_names_of_groups_do_not_matter():
    t = ideal(Simulation(n_lesions=200))
    u = t.sample(frac=1, random_state=0).assign(group_id=lambda d: 'x' + d.group_id)
    a, b = (subgroup_table(o, ['sex'], SIM_CLASSES, n_boot=50) for o in (t, u))
    pd.testing.assert_frame_equal(a[['by', 'subgroup', 'metric', 'estimate', 'n', 'n_groups']], b[['by', 'subgroup', 'metric', 'estimate', 'n', 'n_groups']])

def test_intervals_cover():
    "About 95 % of the intervals of a subgroup's sensitivity hold the true value."
    big = ideal(Simulation(n_lesions=60000, seed=999, group_gap=.5))
    truth = subgroup_table(big, 'skin_type', SIM_CLASSES, ['sensitivity'], n_boot=2).set_index('subgroup').estimate
    hits = []
    for i in range(60):
        r = subgroup_table(ideal(Simulation(n_lesions=400, seed=i, group_gap=.5)), 'skin_type', SIM_CLASSES, ['sensitivity'], n_boot=200).set_index('subgroup')
        hits += [r.low[k] <= truth[k] <= r.high[k] for k in ('dark', 'light')]
    assert .87 <= np.mean(hits) <= 1

def test_pad(real_data):
    "Fitzpatrick V and VI are eleven images: not estimable. Pooled IV to VI are counted, and unknown is a subgroup."
    c = load_cohort('pad_ufes_20', real_data, verbose=False)
    t = c.table
    p = cv_predict(table_encode(c, ['age', 'region', 'itch', 'grew', 'hurt', 'changed', 'bleed', 'elevation']), c.codes(t.label), fold_of(t), len(c.classes))
    t = t.join(pd.DataFrame(p, t.index, [f'p_{k}' for k in c.classes])).assign(age_band=age_band(t.age), skin=skin_type_band(t.fitspatrick))
    r = subgroup_table(t, ['fitspatrick', 'skin', 'gender', 'age_band'], c.classes, ['sensitivity', 'auc'], n_boot=100).set_index(['by', 'subgroup', 'metric'])
    types = t.drop_duplicates('group_id').fitspatrick.value_counts()
    assert types.reindex([1, 2, 3, 4, 5, 6]).tolist() == [74, 465, 212, 34, 8, 1]
    for k in ('5.0', '6.0'): assert not r.estimable['fitspatrick', k, 'sensitivity'] and np.isnan(r.estimate['fitspatrick', k, 'auc'])
    assert r.n_images['skin', 'unknown', 'sensitivity'] == 804 and r.n['skin', 'unknown', 'sensitivity'] == 0   # the 804 rows, all benign
    assert r.estimable['skin', 'IV-VI', 'sensitivity'] and r.loc['all', 'all', 'auc'].estimate > .8
    g = gap_table(t, ['gender', 'age_band'], c.classes, ['sensitivity', 'auc'], n_perm=99, n_boot=50)
    assert (g.p_holm >= g.p).all() and g.n_subgroups.between(2, 4).all()
    assert not intersectional(t, ['skin', 'gender'], c.classes, n_boot=20).estimable.all()
