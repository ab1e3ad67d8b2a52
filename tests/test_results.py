"The published records: complete, without what is not ours, and worth the numbers that are quoted from them."
import pandas as pd, pytest

from conftest import ROOT
from skincancer.core import read_json
from skincancer.data.cohorts import load_cohort
from skincancer.data.simulate import Simulation
from skincancer.data.splits import Split
from skincancer.report.readme import update_readme
from skincancer.training.runs import read_run, score_predictions

RECORDS = sorted(p.parent for p in (ROOT/'results').glob('*/params.json'))
SWEPT = sorted(p.parent for p in (ROOT/'results'/'sweeps').glob('*/*/params.json'))
ids = lambda p: p.name


def cohort_of(run, real_data):
    d = run.info['data']
    return load_cohort(d['name'], None if d['simulated'] else real_data, Simulation(**d['simulation']) if d['simulated'] else None, verbose=False)


def test_readme_quotes_the_records(): assert RECORDS and update_readme(check=True)


@pytest.mark.parametrize('folder', RECORDS + SWEPT, ids=ids)
def test_nothing_is_published_that_is_not_ours(folder):
    columns = pd.read_parquet(folder/'predictions.parquet').columns
    assert {c for c in columns if not c.startswith('p_')} == {'image_id', 'fold', 'split'}
    assert {p.name for p in folder.iterdir()} <= {'params.json', 'metrics.json', 'history.csv', 'predictions.parquet'}


@pytest.mark.parametrize('folder', RECORDS, ids=ids)
def test_split_is_published_and_was_followed(folder):
    run = read_run(folder)
    split = Split.load(ROOT/'results'/'splits'/f'{run.info["data"]["name"]}-{run.info["split"]["sha256"][:12]}.json')
    p = pd.read_parquet(folder/'predictions.parquet')
    assert split.sha256 == run.info['split']['sha256']
    for side in ('valid', 'test'): assert sorted(p.image_id[p.split == side]) == list(getattr(split, side))


@pytest.mark.parametrize('folder', RECORDS, ids=ids)
def test_scores_are_those_of_the_predictions(folder, real_data):
    run = read_run(folder)
    cohort = cohort_of(run, real_data)
    split = Split.load(ROOT/'results'/'splits'/f'{cohort.name}-{run.info["split"]["sha256"][:12]}.json')
    split.audit(cohort.with_images())
    again = score_predictions(run.predictions(cohort), run.info['classes'], n_boot=run.params['n_boot'])
    quoted = pd.DataFrame(read_json(folder/'metrics.json')['test']['scores']).T
    pd.testing.assert_frame_equal(again[['estimate', 'low', 'high']].astype(float), quoted.loc[again.index, ['estimate', 'low', 'high']].astype(float), check_names=False, rtol=1e-9)


@pytest.mark.parametrize('sweep', sorted((ROOT/'results'/'sweeps').glob('*.csv')), ids=lambda p: p.stem)
def test_a_sweep_quotes_its_records(sweep, real_data):
    "Every row of the table has its record, and the estimates are those of the probabilities in it."
    table = pd.read_csv(sweep)
    runs = [read_run(sweep.with_suffix('')/r) for r in table.run]
    cohort = cohort_of(runs[0], real_data)
    for run in runs:
        again = score_predictions(run.predictions(cohort), run.info['classes'], n_boot=2).estimate
        quoted = {k: v['estimate'] for k, v in run.metrics()['test']['scores'].items()}
        assert all(abs(again[k] - quoted[k]) < 1e-9 for k in ('balanced_accuracy', 'macro_auc', 'macro_f1')), run.id


def test_each_fusion_reaches_the_known_optimum_and_falls_back_to_the_image():
    "On the simulated cohort: within three points of the optimum from both, and on permuted metadata no different from the optimum of the image alone."
    table = pd.read_csv(ROOT/'results'/'sweeps'/'ablation_simulated.csv')
    optimum = read_run(ROOT/'results'/'sweeps'/'ablation_simulated'/table.run[0]).metrics()['optimum']
    settings = lambda r: {k: v for k, v in read_run(ROOT/'results'/'sweeps'/'ablation_simulated'/r).params.items() if k not in ('fusion', 'permute_metadata')}
    plain = table[[settings(r) == settings(table.run[0]) for r in table.run]]
    both, control = (plain[~plain.fusion.isin(['image', 'metadata']) & (plain.permute_metadata == p)] for p in (False, True))
    assert set(both.fusion) == set(control.fusion) == {'late', 'film', 'cross_attention', 'metablock', 'metanet', 'gated'}
    assert (both.balanced_accuracy > optimum['both'] - .03).all()
    assert ((control.balanced_accuracy_low < optimum['image']) & (optimum['image'] < control.balanced_accuracy_high)).all()
