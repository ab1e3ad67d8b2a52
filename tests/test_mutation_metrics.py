"""Mutation tests: each wrong version of a metric or a test statistic must be noticed by the reference checks below.

The modules are read as text, one thing is changed (a sign, a bin, a denominator, a tie rule), and the result is compared with
scikit-learn, statsmodels, scipy and published or hand-worked values. The unchanged modules must pass; every mutant must fail.
"""
import itertools, warnings

import numpy as np, pandas as pd, pytest, sklearn.metrics as sk
from numpy.testing import assert_allclose as close
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from mutation import load, rejects

# ---- data ------------------------------------------------------------------------------------------------------------
def simulated(n, k, seed, digits):
    rng = np.random.default_rng(seed)
    y = rng.choice(k, n, p=np.arange(1, k+1)/np.arange(1, k+1).sum())
    z = rng.normal(size=(n, k)) + np.eye(k)[y]
    p = np.round(np.exp(z)/np.exp(z).sum(1, keepdims=True), digits)
    p[np.arange(n), p.argmax(1)] += 1 - p.sum(1)
    return y, p, rng.integers(0, 4, n)

DATA = [simulated(80, 4, 0, 9), simulated(80, 3, 1, 1)]

# ---- references ------------------------------------------------------------------------------------------------------
def check_counts(m):
    for (y, p, w), weighted in itertools.product(DATA, (False, True)):
        a, k, w = p.argmax(1), p.shape[1], w if weighted else None
        cm = m.confusion_matrix(y, p, sample_weight=w)
        close(cm, sk.confusion_matrix(y, a, sample_weight=w))
        close(m.accuracy(y, p, w), sk.accuracy_score(y, a, sample_weight=w))
        close(m.balanced_accuracy(y, p, w), sk.balanced_accuracy_score(y, a, sample_weight=w))
        close(m.macro_f1(y, a, w), sk.f1_score(y, a, average='macro', sample_weight=w))
        r = m.class_rates(cm)
        close(r['precision'], sk.precision_score(y, a, average=None, sample_weight=w))
        close(r['specificity'], [sk.recall_score(y != c, a != c, sample_weight=w) for c in range(k)])
        close(r['sensitivity'], sk.recall_score(y, a, average=None, sample_weight=w))
        close(r['f1'], sk.f1_score(y, a, average=None, sample_weight=w))
    assert np.isnan(m.class_rates([[1, 0], [0, 0]])['sensitivity'][1]) and np.isnan(m.class_rates([[1, 0], [0, 0]])['specificity'][0])
    close(m.balanced_accuracy([0, 0, 1], [0, 2, 1]), .75)
    close(m.confusion_matrix([0, 1], [0, 0], 3), [[1, 0, 0], [1, 0, 0], [0, 0, 0]])
    assert m.decide([[.4, .4, .2]])[0] == 0

def check_ranks(m):
    for (y, p, w), weighted in itertools.product(DATA, (False, True)):
        k, w = p.shape[1], w if weighted else None
        one = np.eye(k)[y]
        close(m.class_auc(y, p, w), sk.roc_auc_score(one, p, average=None, sample_weight=w))
        close(m.class_average_precision(y, p, w), sk.average_precision_score(one, p, average=None, sample_weight=w))
        close(m.macro_auc(y, p, w), sk.roc_auc_score(one, p, average='macro', sample_weight=w))
        close(m.macro_average_precision(y, p, w), sk.average_precision_score(one, p, average='macro', sample_weight=w))
    for f in (m.auc, m.average_precision): assert np.isnan(f([1, 1], [1, 2])) and np.isnan(f([0, 0], [1, 2]))
    close(m.auc([0, 1], [1, 1]), .5)
    close(m.auc([1, 1, 0], [1, 0, 0], [1, 0, 1]), 1)
    close(m.average_precision([1, 1, 0], [2, 1, 0], [0, 1, 1]), 1)

def check_proper(m):
    for (y, p, w), weighted in itertools.product(DATA, (False, True)):
        w, labels = w if weighted else None, range(p.shape[1])
        close(m.nll(y, p, w), sk.log_loss(y, p, sample_weight=w, labels=labels))
        close(m.brier(y, p, w), sk.brier_score_loss(y, p, sample_weight=w, labels=labels, scale_by_half=False))
    close(m.nll([0], [[0, 1]]), -np.log(np.finfo(float).eps))

def check_points(m):
    def isic(a, b, f, w):
        q, v = 1-f, sk.roc_auc_score(1-a, -b, max_fpr=1-f, sample_weight=w)
        return .5*q**2 + (q - .5*q**2)*2*(v - .5)
    for (y, p, w), weighted in itertools.product(DATA, (False, True)):
        a, b, w = (y == 1).astype(int), p[:, 1], w if weighted else None
        fpr, tpr, _ = sk.roc_curve(a, b, sample_weight=w, drop_intermediate=False)
        for s in (0, .5, .9, 1): close(m.sensitivity_at_specificity(a, b, s, w), tpr[1 - fpr >= s - 1e-9].max())
        for f in (.8, .3): close(m.partial_auc(a, b, f, w), isic(a, b, f, w))
        t = m.threshold_at_specificity(a, b, .7)
        assert (b[a == 0] < t).mean() >= .7 > (b[a == 0] < np.sort(b[b < t])[-1]).mean()
        ww = np.ones(len(a)) if w is None else w
        for t in (.2, .5):
            tp, fp = ww[(b >= t) & (a == 1)].sum(), ww[(b >= t) & (a == 0)].sum()
            row = m.decision_curve(a, b, t, w).iloc[0]
            close(row['model'], (tp - fp*t/(1-t))/ww.sum())
            close(row['treat_all'], (ww[a == 1].sum() - ww[a == 0].sum()*t/(1-t))/ww.sum())
    close([m.sensitivity_at_specificity([0, 1], [1, 0], 1), m.partial_auc([0, 1], [1, 0])], 0)
    assert m.threshold_at_specificity([0, 1], [1, 0], 1) == np.inf
    assert np.isnan(m.sensitivity_at_specificity([1, 1], [1, 0])) and np.isnan(m.sensitivity_at_specificity([0, 0], [1, 0]))
    t, s = m.collapse([0, 1, 2], [[.7, .2, .1], [.2, .7, .1], [.1, .2, .7]], ['nv', 'MEL', 'bcc'])
    close(t, [0, 1, 1]); close(s, [.3, .8, .9])
    c = m.decision_curve([0, 1], [.5, .5])
    close(c['threshold'], np.linspace(.01, .99, 99)); close(c['treat_none'], 0); close(c['model'][49], 0)
    y, s = [0]*10 + [1], [*range(10), .5]                                  # the positive beats one of ten negatives
    close(m.sensitivity_at_specificity(y, s, .1), 1); close(m.threshold_at_specificity(y, s, .1), .5)
    assert m.sensitivity_at_specificity(y, s) == 0 and m.sensitivity_at_specificity(y, np.r_[s[:10], 8.5]) == 1
    assert m.threshold_at_specificity(y, s) == 9 and m.partial_auc([0, 1], [1, 1]) == m.partial_auc([0, 1], [1, 1], .8)
    for f in (m.sensitivity_at_specificity, m.partial_auc): close(f(y, s, .15, np.ones((2, 11))), [f(y, s, .15)]*2)
    for f in (m.sensitivity_at_specificity, m.partial_auc): assert f(y, s, .15, np.ones((2, 11))).shape == (2,) and type(f(y, s)) is float
    rejects('outside', m.sensitivity_at_specificity, y, s, 1.1); rejects('outside', m.partial_auc, y, s, 1)
    rejects('strictly between', m.decision_curve, [0, 1], [0, 1], [0]); rejects('strictly between', m.decision_curve, [0, 1], [0, 1], [1])
    rejects('not a probability', m.decision_curve, [0, 1], [0, 1.1]); rejects('not a probability', m.decision_curve, [0, 1], [-.1, 1])
    for positive in (['a', 'b'], []): rejects('but not all', m.collapse, [0], [[.5, .5]], ['a', 'b'], positive)
    tie = m.collapse([0, 0, 0], [[.1, .7, .2], [.3, .5, .2], [.2, .6, .2]], ['mel', 'bcc', 'nv'])[1]
    assert len(set(tie)) == 1                                              # .1 + .7 and .3 + .5 differ in the last bit before rounding

def check_batches(m):
    for y, p, w in DATA:
        W = np.stack([w, w[::-1], np.ones(len(y))])
        got = m.weighted_scores(y, p, W, 'all', chunk=2)
        for v, (_, r) in zip(W, got.iterrows()):
            i = np.repeat(np.arange(len(y)), v.astype(int))
            a, one = p[i].argmax(1), np.eye(p.shape[1])[y[i]]
            ref = dict(balanced_accuracy=sk.balanced_accuracy_score(y[i], a), accuracy=(a == y[i]).mean(),
                       macro_f1=sk.f1_score(y[i], a, average='macro'), macro_auc=sk.roc_auc_score(one, p[i]),
                       macro_ap=sk.average_precision_score(one, p[i]),
                       nll=sk.log_loss(y[i], p[i], labels=range(p.shape[1])),
                       brier=((p[i] - one)**2).sum(1).mean())
            close([r[n] for n in ref], list(ref.values()))
            close(r['auc:1'], sk.roc_auc_score(y[i] == 1, p[i, 1])); close(r['sensitivity:1'], (a[y[i] == 1] == 1).mean())
        s, t = m.scores(y, p), m.per_class_scores(y, p)
        close(s['macro_auc'], sk.roc_auc_score(np.eye(p.shape[1])[y], p)); assert s['auc_classes'] == p.shape[1] and s['n'] == len(y)
        close(t['n'], np.bincount(y)); close(t['ap'], sk.average_precision_score(np.eye(p.shape[1])[y], p, average=None))
    assert m.scores(y[y < 2], p[y < 2])['auc_classes'] == 2
    assert [k for k, v in m.METRICS.items() if v != 1] == ['nll', 'brier'] and m.METRICS['nll'] == m.METRICS['brier'] == -1
    assert set(m.CLASS_METRICS.values()) == {1}

def check_input(m):
    y, p = np.array([0, 1, 1]), np.array([[.7, .3], [.4, .6], [.2, .8]])
    bad = lambda i, row: np.r_[p[:i], [row], p[i+1:]]
    rejects('Row 1 .* NaN', m.scores, y, bad(1, [np.nan, 1]))
    rejects('Row 2 .* sum to one', m.scores, y, bad(2, [.2, .799 - .0011]))
    rejects('Row 0 .* outside', m.scores, y, bad(0, [1.5, -.5]))
    rejects(r'y\[2\] = 2 is not', m.scores, [0, 1, 2], p)
    rejects(r'y\[0\] = -1 is not', m.scores, [-1, 1, 1], p)
    rejects('2 labels for 3', m.scores, y[:2], p)
    rejects('distinct class names', m.scores, y, p, ['a', 'a'])
    rejects('not negative', m.scores, y, p, sample_weight=[1, 1, -1])
    rejects('All weights are zero', m.scores, y, p, sample_weight=[0, 0, 0])
    rejects('not finite', m.auc, y, [1, np.nan, 2]); rejects(r'y\[2\] = 2 is not', m.auc, [0, 1, 2], [1, 2, 3])
    rejects(r'y\[1\] = nan is not a class code 0..1', m.accuracy, [0, np.nan], [1, 0]); rejects('shape', m.scores, [0], [[1.]])
    m.scores(y, bad(2, [.2, .8005]))

def check_bootstrap(m):
    from skincancer.evaluation.metrics import weighted_scores
    y, p, _ = DATA[0]
    q, g = np.roll(p, 1, axis=0)*.3 + p*.7, np.arange(80)//3
    w = m.bootstrap_weights(g, 130, seed=3)
    assert w.shape == (130, 80) and (w == w[:, 3*g.astype(int)]).all() and (w[:, ::3].sum(1) == 27).all() and (w.sum(0) > 0).all()
    close(w.mean(), 1, atol=.1); close(w[:, ::3].var(), 1 - 1/27, atol=.1); assert (w[64:128] != w[:64]).any()
    a, b = (weighted_scores(y, v, w, ['macro_auc'])['macro_auc'] for v in (p, q))
    t = m.cluster_bootstrap(y, p, g, ['macro_auc', 'accuracy'], 130, 3, q, .9).set_index(['metric', 'of']).loc['macro_auc']
    one = lambda v: sk.roc_auc_score(np.eye(4)[y], v)
    close(t['estimate'], [one(p), one(q), one(q) - one(p)])
    for of, v in (('p', a), ('p2', b), ('difference', b - a)):
        close(t.loc[of, ['low', 'high', 'se']].astype(float), [*np.quantile(v, [.05, .95]), v.std(ddof=1)])
    close(t.p_value['difference'], min(1, 2*(1 + min((b <= a).sum(), (b >= a).sum()))/131)); assert np.isnan(t.p_value['p'])
    assert t.n_groups['p'] == 27 and t.n['p'] == 80
    slow = m.bootstrap_metric(lambda y, p: (p.argmax(1) == y).mean(), (y, p), g, 130, 3, .9)
    fast = m.cluster_bootstrap(y, p, g, ['accuracy'], 130, 3, level=.9).iloc[0]
    close([slow[k] for k in ('estimate', 'low', 'high', 'se')], fast[['estimate', 'low', 'high', 'se']].astype(float))
    r = m.cluster_bootstrap([0, 0, 1, 1], [[.6, .4]]*4, [0, 1, 2, 2], ['macro_auc'], 200).iloc[0]
    w = m.bootstrap_weights([0, 1, 2, 2], 200)
    assert r.undefined == r.vanished == ((w[:, 2] == 0) | (w[:, :2].sum(1) == 0)).sum() > 0
    close(m.bootstrap_p(np.r_[-np.ones(4), np.ones(95)]), .1); close(m.bootstrap_p(np.zeros(9)), 1)
    assert sorted(g[m.one_per_group(g)]) == list(range(27))
    rejects('1 group', m.cluster_bootstrap, y, p, np.zeros(80)); rejects('Row 1 has no group', m.group_codes, ['a', None, 'b'])

def obuchowski(y, scores, g):
    psi = lambda s: (s[y == 1][:, None] > s[y == 0]) + .5*(s[y == 1][:, None] == s[y == 0])
    v = [psi(s) for s in scores]
    A, G = np.array([u.mean() for u in v]), np.unique(g)
    d10 = np.array([[(u.mean(1) - a)[g[y == 1] == c].sum() for c in G] for u, a in zip(v, A)])
    d01 = np.array([[(u.mean(0) - a)[g[y == 0] == c].sum() for c in G] for u, a in zip(v, A)])
    m, n, i10, i01, i = (y == 1).sum(), (y == 0).sum(), len(set(g[y == 1])), len(set(g[y == 0])), len(G)
    cross = d10 @ d01.T*i/(i-1)/(m*n)
    return A, d10 @ d10.T*i10/(i10-1)/m**2 + d01 @ d01.T*i01/(i01-1)/n**2 + cross + cross.T

def check_delong(m):
    rng = np.random.default_rng(0)
    y, g = (rng.random(50) < .4).astype(int), rng.integers(0, 30, 50)
    a, b = (np.round(rng.random(50) + .3*y, 1) for _ in 'ab')
    for groups in (g, None):
        A, C = obuchowski(y, [a, b], np.arange(50) if groups is None else groups)
        for u, v in zip(m.delong_covariance(y, a, b, groups=groups), (A, C)): close(u, v)
        r, se = m.delong_test(y, a, b, groups, .9), np.sqrt(C[0, 0] + C[1, 1] - 2*C[0, 1])
        d = A[1] - A[0]
        close(r[:8], [*A, d, se, d - stats.norm.ppf(.95)*se, d + stats.norm.ppf(.95)*se, d/se, 2*stats.norm.sf(abs(d)/se)])
        assert r.n_groups == (50 if groups is None else len(set(g)))
    close(m.delong_covariance([1, 0, 1, 0, 1, 0], [.9, .5, .6, .7, .8, .1], groups=[1, 1, 2, 2, 3, 3])[1], 4/81)
    assert m.delong_test(y, a, 2*a).p == 1 and np.isnan(m.delong_test([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1]).p)
    rejects('two groups with positives', m.delong_test, [0, 0, 1], [1, 2, 3], [1, 2, 3])

def check_mcnemar(m):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        y, a, b = rng.integers(0, 3, (3, 30))
        g = rng.integers(0, 9, 30)
        n10, n01 = ((a == y) & (b != y)).sum(), ((a != y) & (b == y)).sum()
        r = m.mcnemar_test(y, a, b)
        assert (r.only_a, r.only_b, r.n) == (n10, n01, 30)
        close([r.p, r.difference], [mcnemar([[0, n10], [n01, 0]], exact=True).pvalue, (n01 - n10)/30])
        d = np.array([(b == y)[g == c].sum() - (a == y)[g == c].sum() for c in range(9)])
        sums = np.array(list(itertools.product([-1, 1], repeat=9))) @ d
        close(m.mcnemar_test(y, a, b, groups=g).p, (abs(sums) >= abs(d.sum())).mean())
    ahr = lambda method: m.mcnemar_test(np.zeros(21), np.r_[0, np.ones(7), np.zeros(13)], np.r_[1, np.zeros(20)], method).p
    close([ahr('exact'), ahr('midp')], [.0703125, .0390625])              # Fagerland et al. 2013, 1 against 7
    close(m.mcnemar_test([0, 0], [0, 1], [1, 0], 'midp').p, .75); assert m.mcnemar_test([0], [1], [1], 'midp').p == 1

def check_models(m):
    d = np.array([.01, .05, -.02, .03, .04])
    r = m.nadeau_bengio(d, 80, 20, .9)
    se = np.sqrt((1/5 + 20/80)*d.var(ddof=1))
    close(r[:6], [d.mean(), se, *stats.t.interval(.9, 4, d.mean(), se), d.mean()/se, 2*stats.t.sf(d.mean()/se, 4)])
    assert m.nadeau_bengio([0, 0], 8, 2).p == 1 and np.isnan(m.nadeau_bengio([.1, .1], 8, 2).p)
    c45 = pd.DataFrame(dict(a=[4, 1, 4, 4, 4, 1, 3, 2.5, 4, 2.5, 4, 3, 4, 3], b=[3, 2, 1, 1, 2, 2.5, 2, 2.5, 3, 2.5, 2.5, 2, 1, 1],
                            c=[2, 3, 2, 3, 3, 4, 4, 4, 2, 2.5, 1, 4, 2, 4], d=[1, 4, 3, 2, 1, 2.5, 1, 1, 1, 2.5, 2.5, 1, 3, 2]))
    f = m.friedman(-c45)                                                   # Demsar 2006, table 6
    close(f.ranks, [3.143, 2, 2.893, 1.964], atol=1e-3); close(m.nemenyi_distance(4, 14), 1.25, atol=.005)
    close(f.statistic, stats.friedmanchisquare(*c45.to_numpy().T).statistic)
    close(f.posthoc.rank_difference, [f.ranks[b] - f.ranks[a] for a, b in itertools.combinations('abcd', 2)])
    z = abs(f.posthoc.rank_difference)/np.sqrt(4*5/(6*14))
    close(f.posthoc.p_nemenyi, stats.studentized_range.sf(z*2**.5, 4, np.inf), atol=1e-9)
    close(f.posthoc.p_holm.min(), 6*2*stats.norm.sf(z.max()))
    close(m.holm(dict(a=.01, b=.04, c=.03, d=.005)).p_holm, [.03, .06, .06, .02])
    rejects('family must be whole', m.holm, dict(a=.1), ['a', 'b']); rejects('Unknown comparison', m.holm, dict(a=.1, c=.1), ['a'])

def check_edges(m):
    assert m.group_codes([7, 7, 3])[1] == 2
    for level in (0, 1): rejects('level', m.percentile_interval, [1, 2], level)
    rejects('n_boot = 1', m.cluster_bootstrap, [0, 1], [[.5, .5]]*2, [0, 1], n_boot=1)
    assert m.cluster_bootstrap([0, 1], [[.5, .5]]*2, [0, 1], n_boot=2).shape[0] == 7
    v = m.percentile_interval(np.r_[np.arange(101), np.nan]); close([v['low'], v['high'], v['undefined']], [2.5, 97.5, 1])
    v = m.percentile_interval([1, np.nan]); assert np.isnan(v['low']) and v['undefined'] == 1
    v = m.percentile_interval([1, 3]); close([v['low'], v['se']], [1.05, 2**.5])
    assert np.isnan(m.bootstrap_p([1.])) and m.bootstrap_p([1., 2.]) == 2/3
    y, p, _ = DATA[0]
    own = dict(hits=lambda y, p, w: w @ (p.argmax(1) == y)/w.sum(1), images=lambda y, p, w: w.sum(1))
    t = m.cluster_bootstrap(y, p, np.arange(80)//2, own, 50).set_index('metric')
    close(t.estimate, [(p.argmax(1) == y).mean(), 80])
    same = m.cluster_bootstrap(y, p, np.arange(80)//2, ['accuracy'], 50).iloc[0]
    close(t.loc['hits', ['low', 'high']].astype(float), same[['low', 'high']].astype(float))
    rejects('At least two', m.nadeau_bengio, [.1], 8, 2); rejects('must be positive', m.nadeau_bengio, [.1, .2], 8, 0)
    assert m.nadeau_bengio([.1, .2], 1, 1).n == 2 and np.isnan(m.nadeau_bengio([.5, .5, .5], 8, 2).t)
    for bad in (-.1, 1.1, np.nan): rejects('no result', m.holm, dict(a=bad))
    assert m.holm(dict(a=0., b=1.)).reject.tolist() == [True, False] and m.holm(dict(a=.04)).reject.tolist() == [True]
    for shape in ((5, 2), (1, 3)): rejects('at least three models', m.friedman, np.ones(shape))
    f = m.friedman(np.ones((2, 3))); assert (f.statistic, f.p) == (0, 1)
    x = np.random.default_rng(0).random((6, 3)); f = m.friedman(x)
    close([f.statistic, f.p], stats.friedmanchisquare(*x.T)); assert f.n == 6

CHECKS = dict(metrics=(check_counts, check_ranks, check_proper, check_points, check_batches, check_input),
              statistics=(check_bootstrap, check_delong, check_mcnemar, check_models, check_edges))

def survives(module, old='', new=''):
    "Does the module, so changed, pass every reference check?"
    mod = load(module, old, new)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            for check in CHECKS[module]: check(mod)
        except BaseException as e:                                         # a wrong value, or a crash on the way to it
            if isinstance(e, (KeyboardInterrupt, SystemExit)): raise
            return False
    return True

# ---- mutants ---------------------------------------------------------------------------------------------------------
MUTANTS = dict(metrics=[
    ('bad = ~np.isin(y, np.arange(k))', 'bad = ~np.isin(y, np.arange(k+1))'),
    ('bad = ~np.isin(y, np.arange(k))', 'bad = ~np.isin(y, np.arange(-1, k))'),
    ('tol=1e-3', 'tol=1e-4'), ('tol=1e-3', 'tol=1e-1'),
    ('~np.isfinite(p).all(1)', '~np.isfinite(p).any(1)'),
    ('(w < 0).any()', '(w < -9).any()'), ('(w.sum(1) == 0).any()', '(w.sum(1) == 0).all() and False'),
    ('return p.argmax(1) if', 'return p.shape[1] - 1 - p[:, ::-1].argmax(1) if'),
    ('y*k + pred, k*k, w', 'pred*k + y, k*k, w'),
    ('np.add.reduceat(np.take(weights, order, 1), start, axis=1)', 'np.add.reduceat(weights, start, axis=1)'),
    ('def _ratio(a, b): return a / np.where(b > 0, b, np.nan)', 'def _ratio(a, b): return np.nan_to_num(a / np.where(b > 0, b, np.nan))'),
    ('ok.sum(-1))', 'ok.shape[-1] + 0*ok.sum(-1))'),
    ('cm.sum(-1), cm.sum(-2)', 'cm.sum(-2), cm.sum(-1)'),
    ('sensitivity=_ratio(tp, true)', 'sensitivity=_ratio(tp, said)'),
    ('specificity=_ratio(n - true - said + tp, n - true)', 'specificity=_ratio(n - true - said + tp, n - said)'),
    ('specificity=_ratio(n - true - said + tp, n - true)', 'specificity=_ratio(n - true - said, n - true)'),
    ('specificity=_ratio(n - true - said + tp, n - true)', 'specificity=_ratio(n - said, n - true)'),
    ('precision=_ratio(tp, said)', 'precision=_ratio(tp, true)'),
    ('f1=_ratio(2*tp, true + said)', 'f1=_ratio(tp, true + said)'), ('f1=_ratio(2*tp, true + said)', 'f1=_ratio(2*tp, true + said + tp)'),
    ('return float(np.trace(cm) / cm.sum())', 'return float(np.trace(cm) / len(y))'),
    ("np.argsort(-score, kind='stable')\n    s, i", "np.argsort(score, kind='stable')\n    s, i"),
    ("np.searchsorted(s, s[i], 'left')", "np.searchsorted(s, s[i], 'right')"),
    ("np.searchsorted(s, s[i], 'right')", "i"), ("np.searchsorted(s, s[i], 'right')", "i + 1"),
    ("n_pos = np.r_[0, np.cumsum(pos[order])]", "n_pos = np.r_[np.cumsum(pos[order]), pos.sum()]"),
    ('P, N = cp[:, -1], c[:, -1] - cp[:, -1]', 'P, N = cp[:, -1], c[:, -1]'),
    ('above = (c[:, lo] + upto - cp[:, plo] - pos_upto)/2', 'above = upto - pos_upto'),
    ('above = (c[:, lo] + upto - cp[:, plo] - pos_upto)/2', 'above = c[:, lo] - cp[:, plo]'),
    ('above = (c[:, lo] + upto - cp[:, plo] - pos_upto)/2', 'above = (c[:, lo] + upto)/2'),
    ('(wp * (N[:, None] - above)).sum(1), P*N)', '(wp * above).sum(1), P*N)'),
    ('(wp * (N[:, None] - above)).sum(1), P*N)', '((N[:, None] - above)).sum(1), P*N)'),
    ('wp * pos_upto / np.where(upto > 0, upto, 1)', 'wp * cp[:, plo] / np.where(upto > 0, upto, 1)'),
    ('wp * pos_upto / np.where(upto > 0, upto, 1)', 'wp * pos_upto / (upto + 1)'),
    ('np.where(upto > 0, upto, 1)', 'upto'),
    ('np.where(N > 0, _ratio(', 'np.where(N > -1, _ratio('),
    ('def _nll(y, p): return -np.log(', 'def _nll(y, p): return np.log('),
    ('def _nll(y, p): return -np.log(', 'def _nll(y, p): return -np.log2('),
    ('np.finfo(float).eps', '1e-7'),
    ('[y])**2).sum(1)', '[y])**2).mean(1)'), ('[y])**2).sum(1)', '[y])**2).sum(1)/2'), ('[y])**2).sum(1)', '[y]).__abs__()).sum(1)'),
    ("np.einsum('bn,n->b', w, v)/w.sum(1)", "np.einsum('bn,n->b', w, v)/w.shape[1]"),
    ('axis1=1, axis2=2)/n', 'axis1=1, axis2=2)/len(y)'),
    ("macro_auc=_nanmean(out['auc'])", "macro_auc=out['auc'][:, 0]"), ("macro_ap=_nanmean(out['ap'])", "macro_ap=_nanmean(out['auc'])"),
    ('yield big[i:i+size]', 'yield big[i:i+size-1]'),
    ('np.isfinite(class_auc(y, p, sample_weight)).sum()', 'p.shape[1]'),
    ('return m[y].astype(int), np', 'return (~m[y]).astype(int), np'), ('np.round(p[:, m].sum(1), 12)', 'np.round(p[:, m].max(1), 12)'),
    ('str(c).lower() in MALIGNANT', 'c in MALIGNANT'),
    ('np.flatnonzero(np.r_[np.diff(score[order]) != 0, True]) + 1', 'np.arange(len(score)) + 1'),
    ('np.flatnonzero(np.r_[np.diff(score[order]) != 0, True]) + 1', 'np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])'),
    ('return c - tp, tp,', 'return c, tp,'),
    ('np.where(1 - fpr >= specificity - 1e-12, tpr, -1).max(1)', 'np.where(1 - fpr > specificity + 1e-12, tpr, 0).max(1)'),
    ('np.where(1 - fpr >= specificity - 1e-12, tpr, -1).max(1)', 'np.where(fpr >= specificity - 1e-12, tpr, -1).max(1)'),
    ('t[1 - fpr[0, 1:] >= specificity - 1e-12]', 't[1 - fpr[0, :-1] >= specificity - 1e-12]'),
    ('return float(ok.min())', 'return float(ok.max())'),
    ('tpr[:, :-1] - min_tpr, tpr[:, 1:] - min_tpr', 'tpr[:, :-1], tpr[:, 1:]'),
    ('(np.maximum(b, 0)**2 - np.maximum(a, 0)**2)', '(np.maximum(b, 0)**2)'),
    ('2*(b - a), 1), np.maximum(a, 0))', '(b - a), 1), np.maximum(a, 0))'), ('2*(b - a), 1), np.maximum(a, 0))', '2*(b - a), 1), 0)'),
    ('flag, odds = p >= t[:, None], t/(1-t)', 'flag, odds = p > t[:, None], t/(1-t)'),
    ('flag, odds = p >= t[:, None], t/(1-t)', 'flag, odds = p >= t[:, None], (1-t)/t'),
    ('flag @ (w*y) - odds*', 'flag @ (w*y) + odds*'), ('treat_all=w @ y - odds*(w @ ~y)', 'treat_all=w @ y - odds'),
], statistics=[
    ("[:, codes]", "[:, np.arange(len(codes)) % n_groups]"),
    ("rng.integers(0, n_groups, (b, n_groups))", "rng.permuted(np.tile(np.arange(n_groups), (b, 1)), axis=1)"),
    ("rng.integers(0, n_groups, (b, n_groups))", "rng.integers(0, n_groups, (b, n_groups - 1))"),
    ("rng.integers(0, n_groups, (b, n_groups))", "rng.integers(1, n_groups, (b, n_groups))"),
    ("out[64*i:64*i+len(w)] = w", "out[0*i:0*i+len(w)] = w"),
    ("[(1-level)/2, (1+level)/2])\n", "[1-level, level])\n"), ("v.std(ddof=1)", "v.std()"), ("v.std(ddof=1)", "v.std(ddof=1)/len(v)**.5"),
    ("v.std(ddof=1), undefined=n - len(v)", "v.std(ddof=1), undefined=0"),
    ("2*(1 + min((v <= 0).sum(), (v >= 0).sum()))", "(1 + min((v <= 0).sum(), (v >= 0).sum()))"),
    ("2*(1 + min((v <= 0).sum(), (v >= 0).sum()))", "2*(1 + (v <= 0).sum())"),
    ("2*(1 + min((v <= 0).sum(), (v >= 0).sum()))", "2*(1 + min((v < 0).sum(), (v > 0).sum()))"),
    ("2*(1 + min((v <= 0).sum(), (v >= 0).sum()))", "2*min((v <= 0).sum(), (v >= 0).sum())"),
    ("parts[1][1] - parts[0][1], reps[1] - reps[0]", "parts[0][1] - parts[1][1], reps[0] - reps[1]"),
    ("parts[1][1] - parts[0][1], reps[1] - reps[0]",
     "parts[1][1] - parts[0][1], reps[1] - reps[0].sample(frac=1, random_state=0).to_numpy()"),
    ("== 0).any(1).sum())", "== 0).all(1).sum())"),
    ("return (rank[y] - stats.rankdata(pos))/len(neg)", "return (rank[y] - stats.rankdata(pos))/len(pos)"),
    ("1 - (rank[~y] - stats.rankdata(neg))/len(pos)", "(rank[~y] - stats.rankdata(neg))/len(pos)"),
    ("rank = stats.rankdata(score)", "rank = stats.rankdata(score, 'ordinal')"), ("return i/(i-1) * a @ b.T", "return a @ b.T"),
    ("for x, a in zip(v, aucs)])/len(g)", "for x, a in zip(v, aucs)])/n_groups"),
    ("np.bincount(g, x - a, n_groups)", "np.bincount(g, x, n_groups)"), ("+ cross + cross.T", ""), ("+ cross + cross.T", "+ cross"),
    ("+ cross + cross.T", "- cross - cross.T"), ("_scatter(d01, d01, i01)", "_scatter(d01, d01, i10)"),
    ("- 2*cov[0, 1]", ""), ("- 2*cov[0, 1]", "- cov[0, 1]"), ("- 2*cov[0, 1]", "+ 2*cov[0, 1]"),
    ("diff, var = aucs[1] - aucs[0]", "diff, var = aucs[0] - aucs[1]"), ("2*stats.norm.sf(abs(z))", "stats.norm.sf(abs(z))"),
    ("half = stats.norm.ppf((1+level)/2)*se", "half = stats.norm.ppf(level)*se"),
    ("if abs(diff) < 1e-12 else np.nan", "if True else np.nan"),
    ("if b == c else 2*stats.binom.cdf(min(b, c), b + c, .5) - point", "if b == c else 2*stats.binom.cdf(min(b, c), b + c, .5)"),
    ("1 - point/2 if b == c", "1 if b == c"), ("stats.binom.cdf(min(b, c), b + c, .5)", "stats.binom.cdf(max(b, c), b + c, .5)"),
    ("np.roll(pmf, i) + np.roll(pmf, -i)", "np.roll(pmf, i) + pmf"), (">= abs(d.sum())].sum()", "> abs(d.sum())].sum()"),
    (">= abs(d.sum())].sum()", ">= d.sum()].sum()"), ("size = np.abs(d[d != 0])", "size = np.sign(np.abs(d[d != 0]))"),
    ("d = (b == y).astype(int) - (a == y)", "d = (a == y).astype(int) - (b == y)"), ("_flip_p(np.bincount(codes, d))", "_flip_p(d)"),
    ("int((d < 0).sum()), int((d > 0).sum())", "int((d > 0).sum()), int((d < 0).sum())"),
    ("1/len(d) + n_test/n_train", "1/len(d)"), ("1/len(d) + n_test/n_train", "1/len(d) + n_train/n_test"),
    ("*d.var(ddof=1)) if", "*d.var()) if"), ("p = 2*stats.t.sf(abs(t), len(d)-1)", "p = 2*stats.t.sf(abs(t), len(d))"),
    ("p = 2*stats.t.sf(abs(t), len(d)-1)", "p = 2*stats.norm.sf(abs(t))"),
    ("np.inf)/np.sqrt(2)", "np.inf)"), ("np.sqrt(k*(k+1)/(6*n)))\n", "np.sqrt(k*(k+1)/(12*n)))\n"),
    ("ascending=not higher", "ascending=higher"), ("ranks[b] - ranks[a] for", "ranks[a] - ranks[b] for"),
    ("np.sqrt(k*(k+1)/(6*n))\n", "np.sqrt(k*(k-1)/(6*n))\n"), ("z*np.sqrt(2), k, np.inf", "z, k, np.inf"),
    ("2*stats.norm.sf(z)", "stats.norm.sf(z)"), ("alpha, 'holm')", "alpha, 'bonferroni')"), ("alpha, 'holm')", "alpha, 'fdr_bh')"),
    ("if name not in p_values: raise", "if False: raise"),
])

@pytest.mark.parametrize('module', CHECKS)
def test_unchanged_module_passes(module):
    mod = load(module)
    for check in CHECKS[module]: check(mod)

@pytest.mark.parametrize('module,old,new', [(m, *c) for m, cs in MUTANTS.items() for c in cs])
def test_mutant_is_caught(module, old, new):
    assert not survives(module, old, new), f'{module}: nothing notices {old!r} -> {new!r}'
