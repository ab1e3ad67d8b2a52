"""The search for a recipe of the heads on frozen features of PAD-UFES-20: every recipe tried, with its score on the validation sides of five patient-grouped folds.

    python bench/recipes.py --data_dir PATH_TO_DATA      # writes results/recipes-pad_ufes_20.csv

The test sides are not looked at. Differences between recipes are small beside the spread over folds, and the table is there to show it.
"""
import argparse, os, warnings
from contextlib import redirect_stdout
from io import StringIO
from itertools import product

import numpy as np, pandas as pd, torch
from joblib import Parallel, delayed
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from skincancer.core import project_root
from skincancer.data.cohorts import load_cohort
from skincancer.data.images import Preprocess
from skincancer.data.loaders import FusionData
from skincancer.data.metadata import make_encoder
from skincancer.data.splits import kfold
from skincancer.models.encoders import cached_features, create_encoder
from skincancer.models.fusion import create_model
from skincancer.training import experiment as ex
from torch import nn

warnings.filterwarnings('ignore')
RECIPES = {'as it was': {}, 'dropout .5': dict(dropout=.5), 'dropout .2': dict(dropout=.2), 'weight decay .01': dict(weight_decay=.01), '60 epochs': dict(epochs=60), '100 epochs': dict(epochs=100),
           'lr 3e-3': dict(lr=3e-3), 'width 64': dict(width=64), 'no class weights': dict(class_weight_power=0.),
           '60 epochs, dropout .5': dict(epochs=60, dropout=.5), '60 epochs, lr 3e-3': dict(epochs=60, lr=3e-3)}
FUSIONS = ['image', 'metadata', 'late']


def one_fit(recipe, fusion, fold, cohort, table, features, x, rows):
    "Validation scores of one recipe on one fold."
    torch.set_num_threads(1)
    y = cohort.codes(table.label)
    unset = dict(dataset='pad_ufes_20', freeze_encoder=True, fusion=fusion, epochs=None, lr=None, dropout=None, weight_decay=None, batch_size=None, width=None, seed=fold)
    params = ex.resolve(unset | RECIPES[recipe])
    torch.manual_seed(fold)
    model = create_model(fusion, nn.Identity(), features.shape[-1], x.shape[1], len(cohort.classes), width=params['width'], dropout=params['dropout'])
    with redirect_stdout(StringIO()): _, predict = ex.train(model, data := FusionData(features, x, y), rows, params, cohort, table)
    p, truth = predict(data, rows['valid']), y[rows['valid']]
    auc = np.mean([roc_auc_score(truth == c, p[:, c]) for c in np.unique(truth)])
    return dict(recipe=recipe, fusion=fusion, fold=fold, balanced_accuracy=round(balanced_accuracy_score(truth, p.argmax(1)), 4), macro_auc=round(auc, 4))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--data_dir', required=True); ap.add_argument('--processes', type=int, default=os.cpu_count()); a = ap.parse_args()
    cohort = load_cohort('pad_ufes_20', a.data_dir, verbose=False)
    table, cache = ex.usable_images(cohort, Preprocess(224))
    features = cached_features(create_encoder('efficientnet_lite0', size=224), cache)[cache.rows(table.image_id)]
    rows = [ex.split_rows(table, s) for s in kfold(table)]
    x = [make_encoder('pad_ufes_20').fit(table.iloc[r['train']]).transform(table) for r in rows]
    jobs = [*product(RECIPES, FUSIONS, range(5))]
    log = pd.DataFrame(Parallel(a.processes, verbose=1)(delayed(one_fit)(*j, cohort, table, features, x[j[2]], rows[j[2]]) for j in jobs))
    path = project_root()/'results'/'recipes-pad_ufes_20.csv'
    log.to_csv(path, index=False)
    mean = log.groupby(['fusion', 'recipe'], sort=False)[['balanced_accuracy', 'macro_auc']].mean().round(3)
    print(mean.to_string(), f'\nspread over folds (standard deviation, mean over recipes): {log.groupby(["fusion", "recipe"]).balanced_accuracy.std().mean():.3f}', f'\n{len(log)} fits: {path.name}', sep='\n')


if __name__ == '__main__': main()
