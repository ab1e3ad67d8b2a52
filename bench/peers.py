"""What others would use, on the same folds: logistic regression and gradient boosting on frozen features, and AutoGluon MultiModal in an environment of its own.

    python bench/peers.py pad_ufes_20 --data_dir PATH_TO_DATA
    python bench/peers.py pad_ufes_20 --data_dir PATH_TO_DATA --autogluon PATH_TO_ITS_PYTHON     # see autogluon_peer.py

Writes results/peers-DATASET.csv: balanced accuracy and macro AUC over all folds with cluster-bootstrap intervals, processor seconds and peak memory. Nothing is tuned: each peer runs with its defaults, and class weights where it has them.
With --models only these are trained, and the rows of the others are kept.
The features are computed once for all peers and their time is not counted; AutoGluon reads pixels, and its time includes that.
"""
import argparse, resource, subprocess, tempfile, time, warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pandas as pd
from PIL import Image

from skincancer.core import project_root
from skincancer.data.cohorts import load_cohort
from skincancer.data.images import Preprocess
from skincancer.data.metadata import make_encoder
from skincancer.data.splits import kfold
from skincancer.models.encoders import cached_features, create_encoder
from skincancer.report.folds import Folds
from skincancer.training import experiment as ex

warnings.filterwarnings('ignore')


def logistic_regression(x, y):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    return make_pipeline(StandardScaler(), LogisticRegression(class_weight='balanced', max_iter=2000)).fit(x, y)


def gradient_boosting(x, y):
    from sklearn.ensemble import HistGradientBoostingClassifier
    return HistGradientBoostingClassifier(class_weight='balanced', random_state=0).fit(x, y)


PEERS = dict(logistic_regression=logistic_regression, gradient_boosting=gradient_boosting)


def fit_one(name, x, y, rows, k):
    "Train on the training side; test probabilities (n, k), processor seconds, peak memory in GiB of a process of its own."
    start = time.process_time()
    model = PEERS[name](x[rows['train']], y[rows['train']])
    p = np.zeros((len(rows['test']), k)); p[:, model.classes_] = model.predict_proba(x[rows['test']])
    return p, time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20


def as_run(model, fold, cohort, table, rows, p):
    "What `Folds` reads, without a record on disk."
    t = table.iloc[rows['test']][['image_id', 'label', 'group_id']].assign(split='test').reset_index(drop=True)
    t = t.join(pd.DataFrame(p, columns=[f'p_{c}' for c in cohort.classes]))
    return SimpleNamespace(id=f'{model}-{fold}', params=dict(fusion=model, fold=fold, seed=0), predictions=lambda c: t)


def autogluon(python, cohort, table, cache, rows, fold, minutes, columns):
    "One fold in AutoGluon's own environment: pictures and a table go out, probabilities come back; nothing is left behind."
    with tempfile.TemporaryDirectory() as d:
        d, at = Path(d), cache.rows(table.image_id)
        files = [d/f'{i}.png' for i in table.image_id]
        for f, i in zip(files, at): Image.fromarray(cache.array[i]).save(f)
        side = np.full(len(table), 'none', object)
        for s, r in rows.items(): side[r] = s
        table[columns].assign(image=[str(f) for f in files], label=table.label, side=side).to_csv(d/'table.csv', index=False)
        used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        start = used()
        subprocess.run([python, str(Path(__file__).with_name('autogluon_peer.py')), str(d), str(minutes)], check=True)
        seconds, p = used() - start, pd.read_csv(d/'proba.csv')
        return p.reindex(columns=cohort.classes, fill_value=0.).to_numpy(), seconds, float((d/'memory.txt').read_text())


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('dataset', choices=['ham10000', 'pad_ufes_20']); ap.add_argument('--data_dir', required=True)
    ap.add_argument('--autogluon', help='python of an environment with autogluon.multimodal'); ap.add_argument('--minutes', type=float, default=10, help='time limit of AutoGluon per fold')
    ap.add_argument('--models', nargs='*', default=list(PEERS), choices=PEERS, help='the peers to train beside AutoGluon'); a = ap.parse_args()
    cohort = load_cohort(a.dataset, a.data_dir, verbose=False)
    table, cache = ex.usable_images(cohort, Preprocess(224))
    features, y, k = cached_features(create_encoder('efficientnet_lite0', size=224), cache)[cache.rows(table.image_id)], cohort.codes(table.label), len(cohort.classes)
    runs, costs = [], []
    for fold, split in enumerate(kfold(table)):
        rows, encoder = ex.split_rows(table, split), make_encoder(a.dataset)
        tab = encoder.fit(table.iloc[rows['train']]).transform(table)
        jobs = {f'{peer}, {what}': (peer, x) for peer in a.models for what, x in dict(metadata=tab, image=features, both=np.hstack([features, tab])).items()}
        for name, (peer, x) in jobs.items():
            with ProcessPoolExecutor(1) as pool: p, seconds, memory = pool.submit(fit_one, peer, x, y, rows, k).result()
            runs.append(as_run(name, fold, cohort, table, rows, p)); costs.append(dict(model=name, seconds=seconds, memory_gib=memory))
        if a.autogluon:
            p, seconds, memory = autogluon(a.autogluon, cohort, table, cache, rows, fold, a.minutes, [c for c in (*encoder.numeric, *encoder.categorical)])
            runs.append(as_run('AutoGluon MultiModal, both', fold, cohort, table, rows, p)); costs.append(dict(model='AutoGluon MultiModal, both', seconds=seconds, memory_gib=memory))
        print(f'fold {fold} done', flush=True)
    folds = Folds(runs, cohort)
    rows = [dict(model=m, **{f'{k}{end}': round(float(v), 4) for k, span in folds.level(m).items() for end, v in zip(('', '_low', '_high'), span)}) for m in folds.models]
    out = pd.DataFrame(rows).merge(pd.DataFrame(costs).groupby('model').agg(cpu_seconds_per_fold=('seconds', 'mean'), memory_gib=('memory_gib', 'max')).round(1), on='model')
    path = project_root()/'results'/f'peers-{a.dataset}.csv'
    if path.exists(): out = pd.concat([(old := pd.read_csv(path))[~old.model.isin(out.model)], out], ignore_index=True)
    out.to_csv(path, index=False)
    print(out.to_string(index=False), f'\n{folds!r}: {path.name}', sep='\n')


if __name__ == '__main__': main()
