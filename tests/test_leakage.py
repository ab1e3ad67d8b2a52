"The audit over many cohorts: it finds every planted leak and none where none is planted."
import numpy as np, pandas as pd, pytest
from dataclasses import replace

from skincancer.data.cohorts import SIMULATED, Cohort, load_cohort
from skincancer.data.simulate import SIM_MALIGNANT, Simulation, clinical_table, draw_lesions
from skincancer.data.splits import holdout, image_level, kfold
from skincancer.evaluation.leakage import audit

def table_only(s):
    "A simulated cohort without its images."
    lesions = draw_lesions(s)
    t = clinical_table(s, lesions).iloc[np.repeat(np.arange(s.n_lesions), lesions.n_images)].reset_index(drop=True)
    t = t.rename(columns=dict(lesion_id='group_id', diagnosis='label'))
    t.insert(0, 'image_id', [f'SIM_{i:06d}' for i in range(len(t))])
    t.insert(1, 'path', None)
    return Cohort(SIMULATED, t, '', simulation=s)

def verdicts(cohort, features='all', cut=holdout, **kw):
    return {f.name: f.verdict for f in audit(cohort, cut(cohort.table), features, **kw).findings}

SEEDS = range(10)

@pytest.mark.parametrize('seed', SEEDS)
def test_nothing_is_found_where_nothing_is_planted(seed):
    v = verdicts(table_only(Simulation(seed=seed, n_lesions=300 + 170*seed, missing=.02 + .02*seed)), images=False)
    assert set(v.values()) == {'none found', 'not checked'}, v
    assert v['missing values'] == v['known after diagnosis'] == v['groups on two sides'] == v['source shortcut'] == 'none found'

@pytest.mark.parametrize('seed', SEEDS)
def test_every_planted_leak_of_the_table_is_found(seed):
    c = table_only(Simulation(seed=seed, n_lesions=400, missing_leak=.6))
    malignant, rng = c.table.label.isin(SIM_MALIGNANT), np.random.default_rng(seed)
    c.table['excision'] = np.where(malignant | (rng.random(len(malignant)) < .3), 'true', 'false')
    r = audit(c, image_level(c.table), ['age', 'grew', 'itch', 'diameter_mm', 'excision'], images=False)
    assert r.leaks == ['groups on two sides', 'missing values', 'known after diagnosis']
    assert set(r['missing values'].offenders) == {'itch', 'diameter_mm'} and r['known after diagnosis'].offenders == ['excision']

@pytest.mark.parametrize('size', (.3, .6, 1.))
def test_the_size_of_a_missing_value_leak_is_the_planted_one(size):
    t = audit(c := table_only(Simulation(missing_leak=size)), holdout(c.table), 'all', images=False).tests
    r = t[(t.what == 'diameter_mm') & (t.target == 'malignant')].iloc[0]
    assert r.low - .01 < .5 + size/2 < r.high + .01

@pytest.mark.parametrize('seed,shortcut', [(0, 0.), (0, .8), (1, 0.), (1, .8), (2, .8)])
def test_with_images(seed, shortcut):
    c = load_cohort(simulation=Simulation(seed=seed, n_lesions=250, site_shortcut=shortcut), verbose=False)
    v = verdicts(c, 'leak_free')
    assert v.pop('source shortcut') == ('leak' if shortcut else 'none found')
    assert set(v.values()) == {'none found'}, v

def test_copies_are_found_in_both_ways(tmp_path):
    "Ten images come back under the name of another lesion: five byte for byte, five turned and saved again."
    from PIL import Image
    from skincancer.data.images import open_image, read_bytes
    c = load_cohort(simulation=Simulation(n_lesions=250), verbose=False)
    split = kfold(c.table, 5, 0, 0)[0]
    rows = c.table[c.table.image_id.isin(split.test[:10])].copy()
    for n, (i, r) in enumerate(rows.iterrows()):
        path = tmp_path/f'copy_{n}.png'
        if n < 5: path.write_bytes(read_bytes(r.path))
        else: open_image(r.path).rotate(90).save(path)
        rows.loc[i, ['path', 'image_id', 'group_id']] = str(path), f'copy_{n}', f'other_{n}'
    c = replace(c, table=pd.concat([c.table, rows], ignore_index=True))
    split.train = np.sort(np.r_[split.train, rows.image_id.to_numpy(str)])
    r = audit(c, split)
    assert len(r['identical files on two sides'].offenders) == 5
    found = {i for pair in r['near-duplicates on two sides'].offenders for i in pair}
    assert {f'copy_{n}' for n in range(10)} <= found and len(r['near-duplicates on two sides'].offenders) == 10
