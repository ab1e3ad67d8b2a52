"The demo as a server: answers through Gradio's client, refusals, nothing on disk, nothing logged, two hundred at once."
import asyncio, json, os, re, shutil, socket, subprocess, sys, time

import numpy as np, pytest
from PIL import Image

pytest.importorskip('gradio', reason="the demo is an extra: pip install 'skincancer[demo]'")
import httpx
from gradio_client import Client
from gradio_client.exceptions import AppError

from conftest import ROOT
from demo_server import TINY, as_text, bad_files, encoded, noise
from skincancer import demo
from skincancer.predict import load_run

BAD = bad_files()


@pytest.fixture(scope='module')
def predictor(record): return load_run(record, device='cpu')

@pytest.fixture(scope='module')
def client(site, tmp_path_factory): return Client(site.url, verbose=False, download_files=str(tmp_path_factory.mktemp('client')))


def test_a_program_gets_what_the_model_says(client, predictor):
    x, known = demo.draw_example(1), dict(age='61', sex='male', localization='leg', grew='')
    got = client.predict(as_text(encoded(x)), known, api_name='/predict')
    want = predictor.predict([x], [dict(age=61, sex='male', localization='leg')], explain=True)[0]
    assert got['probabilities'] == pytest.approx(want.probabilities, abs=1e-5)
    assert (got['label'], got['decision'], got['conformal_set'], got['out_of_distribution']) == (want.label, want.decision, want.conformal, want.ood)
    assert got['weighed'] == pytest.approx(want.weighed, abs=1e-4)
    assert got['notice'] == demo.NOTICE and got['simulated'] and got['trained_on'] == 'Simulated cohort'


def test_every_field_may_stay_empty(client):
    nothing = client.predict(as_text(encoded(demo.draw_example(0))), api_name='/predict')
    assert nothing == client.predict(as_text(encoded(demo.draw_example(0))), dict(age='', sex=None, grew='unknown'), api_name='/predict')
    assert nothing['weighed']['metadata'] == 0


@pytest.mark.parametrize('name', BAD)
def test_what_is_no_picture_is_refused_in_a_sentence(client, name):
    data, says = BAD[name]
    with pytest.raises(AppError, match=says) as e: client.predict(as_text(data), {}, api_name='/predict')
    assert len(str(e.value)) < 200 and not re.search(r'Traceback|File "|\.py|/site-packages', str(e.value))


@pytest.mark.parametrize('known, says', [(dict(age='710'), 'Age in years'), (dict(age='old'), 'not a number'), (dict(localization='knee'), 'Where on the body'), (dict(colour='red'), 'colour'), (dict(sex=['male']), 'one value'),
                                         (dict(age='1e999'), 'not a number'), (dict(sex={'a': 1}), 'Sex'), (dict(age=True), 'not a number')])
def test_what_cannot_be_is_refused_with_its_question(client, known, says):
    with pytest.raises(AppError, match=says): client.predict(as_text(encoded(noise())), known, api_name='/predict')


@pytest.mark.parametrize('picture, says', [('', 'Choose a picture'), (None, 'Choose a picture'), ('data:image/png;base64,!', 'did not arrive whole'), (5, 'base64')])
def test_a_request_without_a_picture(client, picture, says):
    with pytest.raises(AppError, match=says): client.predict(picture, {}, api_name='/predict')


def test_exif_is_applied_and_dropped(client):
    "A picture that lies on its side says the same as the upright one, and nothing of its note comes back."
    x, exif = demo.draw_example(2, 96)[:, :64], Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x010E] = 6, 'Secret Camera', 'Secret Street 1'
    lying = encoded(np.rot90(x).copy(), exif=exif)
    a, b = (client.predict(as_text(o), {}, api_name='/predict') for o in (lying, encoded(x)))
    assert a['probabilities'] == pytest.approx(b['probabilities'], abs=1e-5)
    assert 'Secret' in lying.decode('latin1') and 'Secret' not in json.dumps(a)


def test_only_what_the_page_needs_is_served(site):
    get = lambda path, **kw: httpx.get(site.url + path, **kw).status_code
    assert [get(p) for p in ('/', '/config', '/theme.css', '/gradio_api/info')] == [200]*4
    closed = ['/gradio_api/file=/etc/passwd', '/file=/etc/passwd', '/gradio_api/proxy=https://example.org/', '/monitoring', '/monitoring/summary', '/gradio_api/runs', '/docs', '/openapi.json', '/gradio_api/upload_progress', '/login',
              '/gradio_api/deep_link', '/assets/../../../../etc/passwd', '/static/%2e%2e/%2e%2e/config', '/gradio_api/vibe-code']
    assert [get(p) for p in closed] == [404]*len(closed)
    posts = ['upload', 'component_server', 'run/predict', 'api/predict', 'call/v2/predict', 'call/look', 'process_recording', 'stream/1']
    assert [httpx.post(f'{site.url}/gradio_api/{p}', json={}).status_code for p in posts] == [404]*len(posts)
    assert httpx.post(f'{site.url}/gradio_api/upload', files=dict(files=('a.png', encoded(noise())))).status_code == 404
    assert [o for o in Client(site.url, verbose=False).view_api(return_format='dict')['named_endpoints']] == ['/predict']


def test_other_names_and_large_bodies_are_turned_away(site):
    assert httpx.get(site.url, headers=dict(host='rebound.example.org')).status_code == 421
    big = b'{"data": ["' + b'A'*20_000_000 + b'"]}'
    answer = httpx.post(f'{site.url}/gradio_api/call/predict', content=big)
    assert answer.status_code == 413 and '10 MB' in answer.json()['detail']
    def pieces():
        for i in range(0, len(big), 500_000): yield big[i:i + 500_000]
    assert httpx.post(f'{site.url}/gradio_api/call/predict', content=pieces(), headers={'content-type': 'application/json'}).status_code >= 400
    assert httpx.post(f'{site.url}/gradio_api/call/predict', content=b'not json').status_code >= 400


def test_headers_keep_the_browser_at_home(site):
    h = httpx.get(site.url).headers
    assert "default-src 'none'" in h['content-security-policy'] and "connect-src 'self'" in h['content-security-policy']
    assert h['cache-control'] == 'no-store' and h['x-content-type-options'] == 'nosniff' and h['referrer-policy'] == 'no-referrer'
    assert not re.search(r'fonts\.(googleapis|gstatic)|cdnjs|unpkg|jsdelivr', httpx.get(site.url).text)


def test_it_listens_on_loopback_only(site):
    port = int(site.url.rsplit(':', 1)[1])
    assert site.url.startswith('http://127.0.0.1:')
    with pytest.raises(ConnectionRefusedError): socket.create_connection(('127.0.0.2', port), 2)


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')
def test_two_hundred_at_once_none_fails_and_memory_stays(site):
    "Two rounds of 200 questions sent in the same moment. The first warms up; the second may not add more than a fraction of it."
    bodies = [dict(data=[as_text(encoded(noise(seed=i))), dict(age=str(i % 90))]) for i in range(200)]
    async def one(c, body):
        event = (await c.post('/gradio_api/call/predict', json=body)).raise_for_status().json()['event_id']
        text = (await c.get(f'/gradio_api/call/predict/{event}')).raise_for_status().text
        assert 'event: complete' in text, text[:300]
        return json.loads(text.rsplit('data: ', 1)[1])[0]
    async def crowd():
        async with httpx.AsyncClient(base_url=site.url, timeout=240, limits=httpx.Limits(max_connections=200)) as c: return await asyncio.gather(*(one(c, b) for b in bodies))
    before, rounds = site.rss, []
    for _ in range(2):
        answers = asyncio.run(crowd())
        rounds.append(site.rss)
        assert len(answers) == 200 and all(abs(sum(a['probabilities'].values()) - 1) < 1e-9 for a in answers)
    assert rounds[1] - rounds[0] < 30, f'{before:.0f} -> {rounds} MB'


def test_a_crowd_of_mistakes_leaves_it_standing(site, client):
    jobs = [client.submit(as_text(BAD[n][0]), {}, api_name='/predict') for n in BAD for _ in range(5)]
    assert all(isinstance(j.exception(timeout=120), AppError) for j in jobs)
    assert client.predict(as_text(encoded(noise())), {}, api_name='/predict')['label']


def test_nothing_is_written_and_nothing_is_logged(site, client):
    "Folders around it, files opened for writing, the limit the system enforces, and what it printed in all the tests above."
    before = site.files()
    for data in (encoded(noise(500, 400, 1)), encoded(noise(300, 300), 'JPEG'), BAD['cut'][0], BAD['pdf'][0]):
        try: client.predict(as_text(data), dict(age='50'), api_name='/predict')
        except AppError: pass
    assert site.files() == before
    started = next(i for i, l in enumerate(site.lines) if l.startswith('Open '))
    assert site.lines[started + 1:] == []
    if os.path.isdir('/proc/self'):
        with open(f'/proc/{site.process.pid}/limits') as f: assert re.search(r'Max file size\s+0\s+0', f.read())
        held = {os.readlink(p.path) for p in os.scandir(f'/proc/{site.process.pid}/fd') if os.path.exists(p.path)}
        assert not [o for o in held if o.startswith('/tmp') or o.startswith(str(site.folders['cwd']))]


def test_a_fault_of_the_program_tells_no_one_the_details(predictor, monkeypatch, capsys):
    def broken(*a, **k): raise RuntimeError('weights of patient Miller')
    monkeypatch.setattr(demo, 'ask', broken)
    message, html, text = demo._for_page(predictor, None, [])('x')
    assert message.startswith('error Something went wrong here') and (html, text) == ('', '')
    err = capsys.readouterr().err
    assert 'Miller' not in err and err.startswith('demo: RuntimeError at test_demo.py')


def test_training_that_was_broken_off_leaves_no_model_and_goes_on(tmp_path):
    def stop(line):
        if 'epoch 1' in line: raise KeyboardInterrupt
    changes = TINY | dict(n_lesions=60, epochs=2)
    with pytest.raises(KeyboardInterrupt): demo.demo_run(tmp_path, stop, **changes)
    assert not list(tmp_path.rglob('metrics.json'))
    lines = []
    folder = demo.demo_run(tmp_path, lines.append, **changes)
    assert load_run(folder).classes and demo.demo_run(tmp_path, pytest.fail, **changes) == folder


def test_the_launcher(record, tmp_path):
    call = lambda *a, **kw: subprocess.run([sys.executable, ROOT/'app'/'app.py', *a], capture_output=True, text=True, timeout=120, env=dict(os.environ, PYTHONPATH=str(ROOT)), **kw)
    told = call('--help').stdout
    assert all(o in told for o in ('--run', '--host', '--port', 'not a diagnosis')) and '--share' not in told
    assert 'between 0 and 65535' in call('--port', '99999').stderr
    gone = call('--port', '0', '--run', str(tmp_path/'nowhere'))
    assert gone.returncode == 1 and 'No run record' in gone.stderr and 'Traceback' not in gone.stderr
    with demo.listen(port=0) as s:
        s.listen()
        busy = call('--port', str(s.getsockname()[1]), '--run', str(record))
        assert busy.returncode == 1 and 'Another port: --port' in busy.stderr and 'Traceback' not in busy.stderr


def test_it_serves_without_any_network(record, tmp_path):
    "In a network namespace with nothing but loopback; asked from inside it."
    unshare = shutil.which('unshare')
    if not unshare or not shutil.which('ip') or subprocess.run([unshare, '-n', 'ip', 'link', 'set', 'lo', 'up'], capture_output=True).returncode: pytest.skip('no right to make a network namespace')
    ask = ('import sys, json; sys.path.insert(0, sys.argv[3]); from demo_server import *; from gradio_client import Client; from pathlib import Path; from skincancer import demo\n'
           's = Server(sys.argv[1], Path(sys.argv[2])/"inside")\n'
           'try: print(json.dumps(Client(s.url, verbose=False).predict(as_text(encoded(demo.draw_example(0))), dict(age="24"), api_name="/predict")["probabilities"]))\n'
           'finally: s.stop()')
    out = subprocess.run([unshare, '-n', 'sh', '-c', 'ip link set lo up && exec "$@"', 'sh', sys.executable, '-c', ask, str(record), str(tmp_path), str(ROOT/'tests')], capture_output=True, text=True, timeout=240,
                         env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'), cwd=tmp_path)
    assert out.returncode == 0, out.stderr[-2000:]
    assert sum(json.loads(out.stdout.strip().splitlines()[-1]).values()) == pytest.approx(1)
