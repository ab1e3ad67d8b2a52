"Sweeps: every combination once, failures and kills included, on workers of their own or of a given scheduler."
import os, signal, subprocess, sys, time

import nbformat, pandas as pd, psutil, pytest

from conftest import ROOT
from skincancer.core import read_json
from skincancer.training.runs import list_runs, read_run
from skincancer.training.sweep import expand, local_cluster, main, plan, publish_sweep, sweep

# A chapter that trains nothing. It keeps a diary, fails as often as it is told to, dies, or waits as long as a file `hold<x>` exists.
CELLS = [
    '''x = 0                # what the score is made of
fail_first = 0       # fail in this many first attempts
die = False          # end the kernel
runs_dir = None      # where the record goes
from skincancer.core import Parameters; declared = Parameters(globals())''',
    'params = declared.check(globals(), x=(0, 9))',
    '''import os, time
from skincancer.core import digest, runs_root, write_json
what = {k: v for k, v in params.items() if k != 'runs_dir'}
root, run_id = runs_root(runs_dir), f'toy-{digest(what)}'
root.mkdir(parents=True, exist_ok=True)
diary = root.parent/'diary.txt'
def note(word):
    with diary.open('a') as f: f.write(f'{word} {x}\\n')
(root.parent/'kernel.pid').write_text(str(os.getpid()))
note('start')''',
    '''if die: os._exit(1)
if diary.read_text().split('\\n').count(f'start {x}') <= fail_first: raise OSError(f'no luck with x={x}')
while (root.parent/f'hold{x}').exists(): time.sleep(.05)''',
    '''score = dict(estimate=x/10, low=x/10 - .1, high=x/10 + .1)
write_json(root/run_id/'params.json', dict(run_id=run_id, chapter='toy', parameters=what))
write_json(root/run_id/'metrics.json', dict(test=dict(images=4, groups=2, scores=dict(balanced_accuracy=score))))
note('end')
print(f'record: {run_id}')''']


@pytest.fixture
def toy(tmp_path):
    cells = [nbformat.v4.new_code_cell(c, metadata=dict(tags=['parameters'] if 'declared = ' in c else [])) for c in CELLS]
    nb = nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name='python3', language='python', display_name='python3')))
    nbformat.write(nb, tmp_path/'toy.ipynb')
    return str(tmp_path/'toy.ipynb')


@pytest.fixture(scope='module')
def address(tmp_path_factory):
    "A dask scheduler that was there before: one worker process, loopback only."
    from distributed import LocalCluster
    old = os.environ.get('SKINCANCER_CACHE')
    os.environ['SKINCANCER_CACHE'] = str(tmp_path_factory.mktemp('cache'))
    with LocalCluster(n_workers=1, threads_per_worker=1, host='127.0.0.1', dashboard_address=None, memory_limit=0, silence_logs=50) as cluster: yield cluster.scheduler_address
    del os.environ['SKINCANCER_CACHE']
    if old is not None: os.environ['SKINCANCER_CACHE'] = old


def where(tmp_path): return dict(out=tmp_path/'out', runs_dir=tmp_path/'runs', progress=False)
def diary(tmp_path): return (tmp_path/'diary.txt').read_text().split('\n')[:-1] if (tmp_path/'diary.txt').exists() else []


def test_every_combination_once(toy):
    spec = [dict(chapter=toy, parameters=dict(die=False), grid=dict(x=[1, 2, 3], fail_first=[0, 1]), runs=[dict(x=1), dict(), dict(fail_first=0, x=2)])]
    assert len(expand(spec)) == 9
    assert [j.params for j in plan(spec)] == [dict(x=1), dict(x=1, fail_first=1), dict(x=2), dict(x=2, fail_first=1), dict(x=3), dict(x=3, fail_first=1), {}]


@pytest.mark.parametrize('text, message', [
    ('parameters: {fail_frist: 1}', "Did you mean 'fail_first'?"),
    ('grid: {x: [1, 10]}', 'outside [0, 9]'),
    ('grid: {x: [1, many]}', 'takes int'),
    ('gird: {x: [1, 2]}', "Did you mean 'grid'?"),
    ('grid: {x: [1]}\ngrid: {x: [2]}', 'stands twice'),
])
def test_mistakes_are_found_before_anything_starts(toy, tmp_path, text, message):
    (tmp_path/'s.yml').write_text(f'chapter: {toy}\n{text}\n')
    with pytest.raises(SystemExit) as e: main(str(tmp_path/'s.yml'), out=str(tmp_path/'out'), runs_dir=str(tmp_path/'runs'))
    assert message in str(e.value) and not (tmp_path/'out').exists() and not (tmp_path/'runs').exists()


def test_chapters_can_be_swept():
    for name in ('02_baseline', '03_multimodal'): assert len(plan(dict(chapter=name, grid=dict(seed=[0, 1, 2])))) == 3
    with pytest.raises(ValueError, match="Did you mean 'convnext'?"): plan(dict(chapter='03_multimodal', grid=dict(backbone=['vit', 'convnxt'])))
    with pytest.raises(ValueError, match='record: '): plan(dict(chapter='01_eda'))


def test_finished_runs_are_not_repeated(toy, tmp_path, address):
    first = sweep(dict(chapter=toy, grid=dict(x=[1, 2])), scheduler=address, **where(tmp_path))
    assert list(first.status) == ['finished', 'finished'] and diary(tmp_path) == ['start 1', 'end 1', 'start 2', 'end 2']
    assert list(first.balanced_accuracy) == [.1, .2] and list(first.balanced_accuracy_high.round(6)) == [.2, .3] and list(first.images) == [4, 4]

    # in another order, with a default written out, and one more
    second = sweep(dict(chapter=toy, parameters=dict(fail_first=0), grid=dict(x=[3, 2, 1])), scheduler=address, **where(tmp_path))
    assert diary(tmp_path)[4:] == ['start 3', 'end 3'] and list(second.attempts) == [1, 1, 1] and set(first.run) < set(second.run)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'out'/'sweep.csv')[['x', 'run', 'balanced_accuracy_low']], second[['x', 'run', 'balanced_accuracy_low']])

    # a record that is gone is made again
    (tmp_path/'runs'/second.run[0]/'metrics.json').unlink()
    assert list(sweep(dict(chapter=toy, grid=dict(x=[3, 2])), dry_run=True, **where(tmp_path)).status) == ['planned', 'finished']
    assert list(sweep(dict(chapter=toy, grid=dict(x=[3, 2])), scheduler=address, **where(tmp_path)).attempts) == [2, 1]


def test_failures_are_tried_again_reported_and_stop_nothing(toy, tmp_path, address, capsys):
    (tmp_path/'s.yml').write_text(f'chapter: {toy}\nruns: [{{x: 1, fail_first: 9}}, {{x: 2, die: true}}, {{x: 3, fail_first: 1}}, {{x: 4}}]\n')
    with pytest.raises(SystemExit) as e:
        main(str(tmp_path/'s.yml'), scheduler=address, retries=1, out=str(tmp_path/'out'), runs_dir=str(tmp_path/'runs'), results='toy')
    printed = capsys.readouterr()
    assert '2 of 4 runs failed' in str(e.value) and 'published' not in printed.out
    t = pd.read_csv(tmp_path/'out'/'s.csv', keep_default_na=False)
    assert list(t.status) == ['failed', 'failed', 'finished', 'finished'] and list(t.attempts) == [2, 2, 2, 1]
    assert t.message[0] == 'OSError: no luck with x=1' and 'Kernel' in t.message[1] and not t.message[2:].any()
    for job in t.job[:2]: assert f'{job}.ipynb' in printed.err and (tmp_path/'out'/f'{job}.ipynb').exists()
    assert sorted(diary(tmp_path)) == sorted(['start 1']*2 + ['start 2']*2 + ['start 3']*2 + ['start 4', 'end 3', 'end 4'])


def wait_for(what, seconds=200):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(.1)


def alive(pid):
    try: return (open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[0]) != 'Z'
    except FileNotFoundError: return False


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='looks for processes in /proc')
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT], ids=['killed', 'interrupted'])
def test_a_stopped_sweep_goes_on_where_it_was(toy, tmp_path, address, how):
    (tmp_path/'s.yml').write_text(f'chapter: {toy}\ngrid: {{x: [1, 2]}}\n')
    (tmp_path/'hold2').touch()
    script = tmp_path/'skincancer_sweep'   # as pip writes it
    script.write_text("import sys\nfrom skincancer.training.sweep import main\nif __name__ == '__main__': sys.exit(main())\n")
    command = [sys.executable, script, tmp_path/'s.yml', '--workers', '1', '--out', tmp_path/'out', '--runs_dir', tmp_path/'runs']
    driver = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=os.environ | dict(PYTHONPATH=str(ROOT)),
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))   # a shell that starts jobs in the background lets them ignore it
    try:
        wait_for(lambda: driver.poll() is not None or 'start 2' in diary(tmp_path))
        assert driver.poll() is None, driver.communicate()[0]
        kernel = int((tmp_path/'kernel.pid').read_text())
        if how == signal.SIGKILL: driver.kill()
        else: os.killpg(driver.pid, how)   # as Ctrl-C does: to the driver and its workers
        text, _ = driver.communicate(timeout=200)
    finally: driver.kill()
    assert driver.returncode != 0 and (how == signal.SIGKILL or 'run the same command again to continue' in text), text
    wait_for(lambda: not alive(kernel))
    states = [read_json(p)['status'] for p in (tmp_path/'out').glob('toy-*.json')]
    assert sorted(states) == ['finished', 'started'] and not (tmp_path/'out'/'s.csv').exists()

    (tmp_path/'hold2').unlink()
    table = sweep(tmp_path/'s.yml', scheduler=address, **where(tmp_path))
    assert list(table.status) == ['finished']*2 and list(table.attempts) == [1, 2]
    assert diary(tmp_path) == ['start 1', 'end 1', 'start 2', 'start 2', 'end 2']


def test_local_workers_share_cores_and_devices(monkeypatch):
    from distributed import Client
    for k in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'CUDA_VISIBLE_DEVICES', 'PYTHONHASHSEED'): monkeypatch.delenv(k, raising=False)
    with local_cluster(workers=2, cores=6, devices=['3', '5']) as cluster, Client(cluster) as client:
        seen = client.run(lambda: {k: os.environ.get(k) for k in ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES', 'IN_TEST')})
        workers = client.scheduler_info()['workers']
        assert {w['resources']['GPU'] for w in workers.values()} == {1} and {w['nthreads'] for w in workers.values()} == {1}
        here = psutil.Process()
        sockets = [c for p in (here, *here.children(recursive=True)) for c in p.net_connections('inet') if c.status == psutil.CONN_LISTEN]
        assert sockets and {c.laddr.ip for c in sockets} == {'127.0.0.1'}, 'nobody else can reach it'
    assert sorted(s['CUDA_VISIBLE_DEVICES'] for s in seen.values()) == ['3', '5']
    assert all(s['OMP_NUM_THREADS'] == '3' and s['IN_TEST'] == '' for s in seen.values())
    assert not {'OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'CUDA_VISIBLE_DEVICES', 'PYTHONHASHSEED'} & set(os.environ), 'what is meant for the workers stays with them'


def test_two_real_runs(tmp_path, address):
    spec = dict(chapter='03_multimodal', parameters=dict(n_lesions=80, epochs=1, size=32, freeze_encoder=True, n_boot=100), grid=dict(seed=[0, 1]))
    table = sweep(spec, scheduler=address, retries=0, **where(tmp_path))
    assert list(table.status) == ['finished']*2 and list(table.seed) == [0, 1] and not table.message.any(), table.message.tolist()
    assert set(table.run) == set(list_runs(tmp_path/'runs').run)
    for row in table.itertuples():
        run = read_run(tmp_path/'runs'/row.run)
        s = run.metrics()['test']['scores']['balanced_accuracy']
        assert (row.balanced_accuracy, row.balanced_accuracy_low, row.balanced_accuracy_high) == (s['estimate'], s['low'], s['high'])
        assert run.params['seed'] == row.seed and run.params['epochs'] == 1

    csv = pd.read_csv(publish_sweep(table, 'tiny', tmp_path/'runs', tmp_path/'results'))
    assert list(csv.columns[:2]) == ['seed', 'run'] and not {'message', 'seconds', 'job'} & set(csv.columns)
    for r in csv.run: assert 'label' not in pd.read_parquet(tmp_path/'results'/'sweeps'/'tiny'/r/'predictions.parquet')
