"The ablation chapter on made-up records: differences, corrections and what it says of runs that were never made; and the leak table's record."
import os, subprocess, sys

import nbformat, numpy as np, pandas as pd, pytest, yaml
from sklearn.metrics import balanced_accuracy_score
from statsmodels.stats.multitest import multipletests

from conftest import ROOT
from skincancer.core import read_json
from skincancer.data.cohorts import load_cohort
from skincancer.data.simulate import Simulation, posterior
from skincancer.data.splits import holdout, image_level
from skincancer.evaluation.leakage import leak_sets
from skincancer.evaluation.statistics import cluster_bootstrap
from skincancer.report.ablation import chapter_defaults, leak_cells, leak_rows, read_ablation, read_leak_table, sweep_changes
from skincancer.training.experiment import resolve
from skincancer.training.runs import prediction_table, publish_run, read_run, score_predictions, start_run

SPEC = dict(chapter='03_multimodal', parameters=dict(dataset='simulated', n_lesions=200), grid=dict(fusion=['late', 'film', 'metablock', 'image', 'metadata']),
            runs=[dict(permute_metadata=True), dict(hair_removal=True), dict(seed=1), dict(seed=1, fusion='image'), dict(split='image_level'), dict(split='image_level', fusion='image')])
NEVER_MADE = [dict(fusion='metablock'), dict(hair_removal=True)]


def made_up(cohort, change, runs_dir):
    "A record whose probabilities are the exact posterior of what the run would see, with noise."
    p = resolve(chapter_defaults(SPEC['chapter']) | SPEC['parameters'] | change | dict(n_boot=100))
    split = (image_level if p['split'] == 'image_level' else holdout)(cohort.table)
    seen = 'none' if p['fusion'] == 'image' or p.get('permute_metadata') else p['features']
    rng = np.random.default_rng(len(str(change)))
    def proba(ids):
        q = np.log(posterior(cohort.simulation, cohort.truth.set_index('image_id').loc[ids], p['fusion'] != 'metadata', seen) + 1e-4) + rng.normal(size=(len(ids), 5))
        return np.exp(q)/np.exp(q).sum(1, keepdims=True)
    run = start_run(SPEC['chapter'], p, cohort, split, runs_dir=runs_dir)
    predictions = prediction_table(cohort, split, valid=proba(split.valid), test=proba(split.test))
    return run.finish(predictions, {s: score_predictions(predictions, cohort.classes, s, 100) for s in ('valid', 'test')})


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A folder with a specification and records of all declared runs but two."
    folder = tmp_path_factory.mktemp('sweep')
    (folder/'toy.yml').write_text(yaml.safe_dump(SPEC))
    cohort = load_cohort('simulated', simulation=Simulation(n_lesions=200), verbose=False)
    for c in sweep_changes(SPEC):
        if c not in NEVER_MADE: publish_run(made_up(cohort, c, folder/'runs'), folder/'results')
    return folder


@pytest.fixture(scope='module')
def study(made): return read_ablation(str(made/'toy.yml'), 'simulated', made/'runs', n_boot=300)


def test_of(study, run):
    t = run.predictions(study.cohort).query("split == 'test'")
    p = t[[f'p_{c}' for c in study.cohort.classes]].to_numpy(float)
    return study.cohort.codes(t.label), p/p.sum(1, keepdims=True), t.group_id.to_numpy()
test_of.__test__ = False


def test_each_declared_run_finds_its_record(study):
    d = study.declared
    assert [c for c, r in zip(d.change, d.run) if r is None] == NEVER_MADE
    for c, r in zip(d.change, d.run):
        if r is not None: assert {k: r.params.get(k) for k in c} == c


def test_differences_are_those_of_the_paired_cluster_bootstrap(study):
    a, b = study.run(dict(fusion='film')), study.run({})
    (y, pa, g), (_, pb, _) = test_of(study, a), test_of(study, b)
    row = study.table('fusion').query("run == 'film' and metric == 'balanced_accuracy'").iloc[0]
    assert row.difference == pytest.approx(balanced_accuracy_score(y, pa.argmax(1)) - balanced_accuracy_score(y, pb.argmax(1)))
    slow = cluster_bootstrap(y, pb, g, ['balanced_accuracy'], 300, p2=pa).query("of == 'difference'").iloc[0]
    assert [row.d_low, row.d_high, row.p] == pytest.approx([slow.low, slow.high, slow.p_value])


def test_holm_counts_runs_that_were_never_made(study):
    t = study.table('fusion')
    assert t.against.tolist() == ['reference']*4 and t.p.isna().sum() == 2
    assert t.p_holm.dropna().tolist() == pytest.approx(multipletests(t.p.fillna(1), method='holm')[1][t.p.notna()])
    assert t.p_holm.isna().tolist() == t.p.isna().tolist()


def test_permuted_control_stands_against_the_image_alone(study):
    t = study.table('controls').query("metric == 'balanced_accuracy'")
    assert list(zip(t.run, t.against)) == [('image', 'reference'), ('metadata', 'reference'), ('permuted metadata', 'image'), ('permuted metadata', 'reference')]
    assert t.optimum.round(3).tolist() == [.684, .616, .684, .684] and t.expected.round(3).tolist() == [-.123, -.191, 0, -.123]


def test_other_test_images_are_never_subtracted(study):
    with pytest.raises(ValueError, match='not scored on the same images'): study.scores.difference(study.run(dict(split='image_level')), study.run({}))
    t = study.table('split')
    assert t.difference[t.run == 'reference (image level)'].isna().all() and t.difference[t.run == 'image (image level)'].notna().all()


def test_what_is_missing_is_said_with_its_command(study, capsys):
    for f in ('fusion', 'preprocessing', 'controls', 'source'): study.say_missing(f)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3 and '1 of 2 declared runs have no record yet (metablock)' in out[0] and out[0].endswith('toy.yml') and 'skincancer_sweep' in out[1] and 'declares no such run' in out[2]
    assert study.show('preprocessing') is None


def test_published_records_give_the_same_tables(made, study):
    again = read_ablation(str(made/'toy.yml'), 'simulated', made/'results', n_boot=300)
    for f in ('fusion', 'controls', 'split'): pd.testing.assert_frame_equal(again.table(f), study.table(f))


def test_a_run_on_other_data_is_not_a_record(made, study, tmp_path):
    "The same parameters, but another draw of the cohort."
    other = load_cohort('simulated', simulation=Simulation(n_lesions=200, seed=3), verbose=False)
    for c, cohort in (({}, study.cohort), (dict(fusion='film'), other)): made_up(cohort, c, tmp_path)
    mixed = read_ablation(str(made/'toy.yml'), 'simulated', tmp_path, n_boot=100)
    assert mixed.run({}) is not None and mixed.run(dict(fusion='film')) is None


def test_seeds_are_averaged_in_every_replicate(study):
    pairs = study.seed_runs()
    assert list(pairs) == [0, 1]
    gains = [study.scores(a)[0].balanced_accuracy - study.scores(b)[0].balanced_accuracy for a, b in pairs.values()]
    assert study.seed_table().loc['mean', 'fusion − image'].startswith(f'{np.mean(gains):+.3f} [')


def papermill(tmp_path, **params):
    out = tmp_path/'out.ipynb'
    args = [o for k, v in params.items() for o in ('-p', k, str(v))]
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | dict(PYTHONWARNINGS='ignore')
    r = subprocess.run([sys.executable, '-m', 'papermill', str(ROOT/'nbs/04_ablation.ipynb'), str(out), '-k', 'python3', '--no-progress-bar', *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    return r.returncode, r.stdout + r.stderr, out


def test_chapter_from_records_alone(made, tmp_path):
    code, text, out = papermill(tmp_path, sweep=made/'toy.yml', records=made/'runs', n_boot=200)
    assert code == 0, text[-3000:]
    cells = nbformat.read(out, 4).cells
    said = ''.join(o.get('text', '') for c in cells for o in c.get('outputs', []))
    assert 'SIMULATED' in said and '9 of 11 declared runs' in str(cells) and 'no record yet (metablock)' in said and 'declares no such run' in said
    assert sum('image/png' in o.get('data', {}) for c in cells for o in c.get('outputs', [])) >= 5   # fusion, controls, split, two leak tables


def test_chapter_without_any_record(made, tmp_path):
    "Sections without records say so, and the leak table is there all the same."
    code, text, out = papermill(tmp_path, records=tmp_path, n_boot=100)
    assert code == 0, text[-3000:]
    assert 'skincancer_sweep nbs/sweeps/ablation_simulated.yml' in ''.join(o.get('text', '') for c in nbformat.read(out, 4).cells for o in c.get('outputs', []))


def test_sweeps_declare_what_the_report_shows():
    for name in ('simulated', 'ham10000', 'pad_ufes_20'):
        spec = yaml.safe_load((ROOT/f'nbs/sweeps/ablation_{name}.yml').read_text())
        assert spec['parameters']['dataset'] == name and not set(spec['parameters']) & set(spec['grid'])
        changes = sweep_changes(spec)
        assert changes[0] == {} and dict(permute_metadata=True) in changes and dict(seed=2, fusion='image') in changes


def test_leak_table_record_is_complete():
    for name, n, groups in (('pad_ufes_20', 2298, 1373), ('ham10000', 10015, 7470)):
        r = read_leak_table(name)
        assert (r['n'], r['n_groups']) == (n, groups) and {'checksum', 'name'} <= set(r['data']) and r['environment']['code'] and r['command'].startswith('papermill')
        c, d = r['cells'], r['differences']
        assert len(c) == 2*2*3*len(r['sets']) and ((c.low <= c.estimate) & (c.estimate <= c.high)).all() and ((c.smallest <= c.estimate) & (c.estimate <= c.largest)).all()
        assert len(d) == r['comparisons'] and d.p_holm.tolist() == pytest.approx(multipletests(d.p, method='holm')[1])


def test_leak_table_of_pad_is_what_the_table_gives(real_data):
    "Two cells, recomputed from the reader's own copy."
    record, cohort = read_leak_table('pad_ufes_20'), load_cohort('pad_ufes_20', real_data, verbose=False)
    assert record['data']['checksum'] == cohort.checksum and record['sets'] == leak_sets(cohort)
    again = pd.DataFrame(leak_rows(leak_cells(cohort, {'leak-free': record['sets']['leak-free']}, ['lr'], record['seeds'], record['n_boot']))['cells'])
    kept = record['cells'].merge(again[['model', 'features', 'split', 'metric']])
    assert len(kept) == 6
    pd.testing.assert_frame_equal(kept, again[kept.columns], check_exact=False, rtol=1e-4)
    honest = kept.query("split == 'grouped' and metric == 'balanced_accuracy'").iloc[0]
    assert honest.estimate == pytest.approx(.634, abs=.03)           # computed independently of this package


def test_leak_table_tells_the_story():
    "The forest gains more from the split than the regression; missing flags alone are worth something by patient too."
    d = read_leak_table('pad_ufes_20')['differences'].query("metric == 'balanced_accuracy'").set_index(['model', 'features', 'what'])
    assert d.low['random forest', 'all', 'split'] > .05 and d.estimate['random forest', 'all', 'split'] > d.estimate['logistic regression', 'all', 'split']
    assert d.p_holm['random forest', 'all', 'split'] < .05
