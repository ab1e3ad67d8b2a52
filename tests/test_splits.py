"Properties that every split must have, on random tables: what single examples in the notebook cannot show."
import numpy as np, pandas as pd, pytest
from hypothesis import Phase, given, settings, strategies as st

from skincancer.data.splits import SIDES, Split, holdout, image_level, kfold, leave_one_source_out, linked_groups, nested

# shrinking a table takes minutes and makes it no clearer; the audit in the message names the offenders
fast = dict(deadline=None, database=None, phases=[Phase.explicit, Phase.generate])

@st.composite
def cohorts(draw):
    "Groups of one to five images, some of mixed labels, with a few files shared between groups."
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, classes, most = draw(st.integers(24, 60)), draw(st.integers(2, 3)), draw(st.integers(1, 5))
    size = rng.integers(1, most + 1, n)
    group, label = [f'g{i:02}' for i in rng.permutation(n)], [f'c{i % classes}' for i in range(n)]
    t = pd.DataFrame(dict(group_id=np.repeat(group, size), label=np.repeat(label, size)))
    t['label'] = t.label.where(rng.random(len(t)) > .05, 'c0')
    t['image_id'], t['dataset'] = [f'i{i:03}' for i in rng.permutation(len(t))], rng.choice(['a', 'b'], len(t), p=[.8, .2])
    twins = rng.choice(len(t), (3, 2), replace=False)
    return t, pd.Series(np.repeat(['x', 'y', 'z'], 2), index=t.image_id.to_numpy()[twins.ravel()])

@settings(max_examples=20, **fast)
@given(cohorts(), st.integers(0, 99))
def test_every_split_passes_its_audit(cohort, seed):
    t, twins = cohort
    kw = dict(seed=seed, identical=twins)
    outer = nested(t, k=3, inner=2, valid=0, **kw)
    for s in [holdout(t, **kw), *kfold(t, k=3, **kw), *outer, *(i for o in outer for i in o.inner)]:
        assert s.audit(t, twins).ok and len(s.train) and len(s.test)

@settings(max_examples=20, **fast)
@given(cohorts(), st.integers(0, 99))
def test_row_order_does_not_matter(cohort, seed):
    t, twins = cohort
    u, v = t.sample(frac=1, random_state=seed), twins.sample(frac=1, random_state=seed)
    assert holdout(t, identical=twins).sha256 == holdout(u, identical=v).sha256
    assert [s.sha256 for s in kfold(t, k=3, identical=twins)] == [s.sha256 for s in kfold(u, k=3, identical=v)]
    assert image_level(t).sha256 == image_level(u).sha256
    assert linked_groups(t, twins).sort_index().equals(linked_groups(u, v).sort_index())

@settings(max_examples=15, **fast)
@given(cohorts())
def test_a_left_out_source_is_tested_whole(cohort):
    t, twins = cohort
    for s in leave_one_source_out(t, identical=twins, valid=0):
        assert s.audit(t, twins).ok
        assert set(s.test) == set(t.image_id[t.dataset == s.name.removeprefix('source_')])

@pytest.mark.parametrize('side', SIDES)
def test_one_changed_id_is_noticed(tmp_path, side):
    s = Split('s', ['a1', 'a2'], ['b1', 'b2'], ['c1', 'c2'])
    path = s.save(tmp_path/'s.json')
    path.write_text(path.read_text().replace(f'"{getattr(s, side)[0]}"', '"other"'))
    with pytest.raises(ValueError, match=f"'{side}' holds 2 ids"): Split.load(path)
