"""The search for recipes of the heads on frozen features: every recipe tried, with its score on the validation sides of grouped folds.

    python bench/recipes.py pad_ufes_20 --data_dir PATH_TO_DATA      # writes results/recipes-pad_ufes_20.csv
    python bench/recipes.py ham10000 --data_dir PATH_TO_DATA         # the two heads that read tokens, two folds

The test sides are not looked at. Differences between recipes are small beside the spread over folds, and the table is there to show it, or, for MetaBlock on HAM10000, to show where they are not.
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
from skincancer.data.metadata import make_encoder
from skincancer.data.splits import kfold
from skincancer.models.encoders import create_encoder
from skincancer.training import experiment as ex

warnings.filterwarnings('ignore')
RECIPES = {'as it was': {}, 'dropout .5': dict(dropout=.5), 'dropout .2': dict(dropout=.2), 'weight decay .01': dict(weight_decay=.01), '60 epochs': dict(epochs=60), '100 epochs': dict(epochs=100),
           'lr 3e-3': dict(lr=3e-3), 'width 64': dict(width=64), 'no class weights': dict(class_weight_power=0.),
           '60 epochs, dropout .5': dict(epochs=60, dropout=.5), '60 epochs, lr 3e-3': dict(epochs=60, lr=3e-3)}
TOKENS = {'as it was': {}, 'dropout .5': dict(dropout=.5), 'lr 3e-3': dict(lr=3e-3), 'lr 3e-3, dropout .5': dict(lr=3e-3, dropout=.5), '20 epochs, lr 3e-3, dropout .5': dict(epochs=20, lr=3e-3, dropout=.5),
          '40 epochs, lr 3e-3, dropout .5': dict(epochs=40, lr=3e-3, dropout=.5)}
SEARCHES = dict(pad_ufes_20=(RECIPES, ['image', 'metadata', 'late'], range(5)), ham10000=(TOKENS, ['metablock', 'cross_attention'], range(2)))


def one_fit(recipe, settings, fusion, fold, cohort, table, cache, rows):
    "Validation scores of one recipe on one fold."
    torch.set_num_threads(1)
    unset = dict(dataset=cohort.name, freeze_encoder=True, fusion=fusion, epochs=None, lr=None, dropout=None, weight_decay=None, batch_size=None, width=None, seed=fold)
    params = ex.resolve(unset | settings)
    encoder, metadata = create_encoder('efficientnet_lite0', size=224), make_encoder(cohort.name).fit(table.iloc[rows['train']])
    data, y = ex.model_inputs(cohort, table, cache, metadata, encoder, fusion), cohort.codes(table.label)
    model = ex.build_model(fusion, encoder, True, metadata.transform(table).shape[1], len(cohort.classes), fold, width=params['width'], dropout=params['dropout'])
    with redirect_stdout(StringIO()): _, predict = ex.train(model, data, rows, params, cohort, table)
    p, truth = predict(data, rows['valid']), y[rows['valid']]
    auc = np.mean([roc_auc_score(truth == c, p[:, c]) for c in np.unique(truth)])
    return dict(recipe=recipe, fusion=fusion, fold=fold, balanced_accuracy=round(balanced_accuracy_score(truth, p.argmax(1)), 4), macro_auc=round(auc, 4))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('dataset', choices=SEARCHES); ap.add_argument('--data_dir', required=True); ap.add_argument('--processes', type=int, default=os.cpu_count()); a = ap.parse_args()
    recipes, fusions, folds = SEARCHES[a.dataset]
    cohort = load_cohort(a.dataset, a.data_dir, verbose=False)
    table, cache = ex.usable_images(cohort, Preprocess(224))
    rows = [ex.split_rows(table, s) for s in kfold(table)]
    jobs = [*product(recipes, fusions, folds)]
    log = pd.DataFrame(Parallel(a.processes, verbose=1)(delayed(one_fit)(r, recipes[r], f, k, cohort, table, cache, rows[k]) for r, f, k in jobs))
    path = project_root()/'results'/f'recipes-{a.dataset}.csv'
    log.to_csv(path, index=False)
    mean = log.groupby(['fusion', 'recipe'], sort=False)[['balanced_accuracy', 'macro_auc']].mean().round(3)
    print(mean.to_string(), f'\nspread over folds (standard deviation, mean over recipes): {log.groupby(["fusion", "recipe"]).balanced_accuracy.std().mean():.3f}', f'\n{len(log)} fits: {path.name}', sep='\n')


if __name__ == '__main__': main()
