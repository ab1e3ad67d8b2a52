"""Fusion heads x five lesion-grouped folds on cached features of all HAM10000 images: how long, and what each scores on validation.

    python bench/heads.py --data_dir PATH_TO_DATA      # --save keeps the numbers for the README

Without the data, features of the same shape are drawn at random; the time is the same, the scores mean nothing and are not shown.
"""
import argparse, os, time, warnings
from contextlib import redirect_stdout
from io import StringIO
from itertools import product
from types import SimpleNamespace

import numpy as np, pandas as pd, torch
from joblib import Parallel, delayed
from sklearn.metrics import balanced_accuracy_score

from skincancer.data.cohorts import HAM10000, load_cohort
from skincancer.data.images import Preprocess
from skincancer.data.loaders import FusionData
from skincancer.data.metadata import make_encoder
from skincancer.data.splits import kfold
from skincancer.models.encoders import cached_features, create_encoder
from skincancer.models.fusion import create_model
from skincancer.report.readme import save_speed
from skincancer.training import experiment as ex
from torch import nn

warnings.filterwarnings('ignore')
FUSIONS = ['late', 'film', 'cross_attention', 'metablock', 'gated']


def real(data_dir):
    cohort, encoder = load_cohort('ham10000', data_dir, verbose=False), create_encoder('efficientnet_lite0', size=224)
    table, cache = ex.usable_images(cohort, Preprocess(224))
    start, at = time.perf_counter(), cache.rows(table.image_id)
    features = {grid: cached_features(encoder, cache, grid=grid) for grid in (0, 3)}
    print(f'features of {len(table):,} images ready in {time.perf_counter() - start:.0f} s (from the cache, if they were computed before)')
    return table, {g: np.ascontiguousarray(f[at]) for g, f in features.items()}, cohort


def drawn(n=10_015):
    "A table and features of HAM10000's shape."
    rng, k = np.random.default_rng(0), len(HAM10000.classes)
    table = pd.DataFrame(dict(image_id=[f'i{i:05d}' for i in range(n)], group_id=[f'g{i*3//4}' for i in range(n)], age=rng.integers(20, 85, n)/1., sex=rng.choice(['male', 'female'], n),
                              localization=rng.choice(['back', 'face', 'trunk'], n), label=rng.choice(HAM10000.classes, n, p=[.03, .05, .11, .02, .11, .66, .02])))
    return table, {0: rng.normal(size=(n, 1280)).astype(np.float32), 3: rng.normal(size=(n, 9, 1280)).astype(np.float16)}, k


def one_fit(job, table, features, x, rows, classes, cohort):
    "Train one head on one fold, on one thread; validation balanced accuracy."
    fold, fusion = job
    torch.set_num_threads(1)
    images, y = features[3 if ex.reads_tokens(fusion) else 0], np.array([classes.index(o) for o in table.label])
    params = ex.resolve(dict(dataset='ham10000', freeze_encoder=True, fusion=fusion, epochs=None, lr=None, dropout=None, weight_decay=None, batch_size=None, width=None, seed=fold))
    torch.manual_seed(fold)
    model = create_model(fusion, nn.Identity(), images.shape[-1], x[fold].shape[1], 7, width=params['width'], dropout=params['dropout'])
    with redirect_stdout(StringIO()): _, predict = ex.train(model, data := FusionData(images, x[fold], y), rows[fold], params, cohort, table)
    return balanced_accuracy_score(y[rows[fold]['valid']], predict(data, rows[fold]['valid']).argmax(1))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--data_dir'); ap.add_argument('--fusions', nargs='+', default=FUSIONS); ap.add_argument('--processes', type=int, default=os.cpu_count())
    ap.add_argument('--save', action='store_true', help='keep what is printed in results/'); a = ap.parse_args()
    table, features, cohort = real(a.data_dir) if a.data_dir else drawn()
    classes, start = list(HAM10000.classes), time.perf_counter()
    rows = [ex.split_rows(table, split) for split in kfold(table)]
    x = [make_encoder('ham10000').fit(table.iloc[r['train']]).transform(table) for r in rows]
    about = SimpleNamespace(classes=classes, spec=HAM10000)
    jobs = sorted(product(range(5), a.fusions), key=lambda o: not ex.reads_tokens(o[1]))  # the long ones first
    scores = Parallel(a.processes)(delayed(one_fit)(o, table, features, x, rows, classes, about) for o in jobs)
    seconds = time.perf_counter() - start
    lines = [f'{len(a.fusions)} fusions x 5 folds on {len(table):,} images, {a.processes} processes of one thread: {seconds:.0f} s']
    if a.data_dir:
        by = pd.DataFrame(dict(fusion=[f for _, f in jobs], score=scores)).groupby('fusion').score.agg(['mean', 'min', 'max'])
        lines += ['validation balanced accuracy, mean over folds [range]: ' + ', '.join(f'{f} {o["mean"]:.3f} [{o["min"]:.3f}, {o["max"]:.3f}]' for f, o in by.iterrows())]
    print(*lines, sep='\n')
    if a.save: print(save_speed('heads', f'CPU, {a.processes} processes of one thread', lines).name)


if __name__ == '__main__': main()
