import http.server, os, threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def book_files(items):
    "Files of the book in its order, through its parts."
    for o in items:
        if isinstance(o, str): yield o
        else: yield from book_files(o['chapters']) if 'chapters' in o else [o['href']]


@pytest.fixture(scope='session')
def real_data():
    "The folder of real data sets, or a skip where there is none beside the checkout."
    folder = Path(os.environ.get('SKINCANCER_TEST_DATA', ROOT.parent/'shared'/'data'))
    if not folder.is_dir(): pytest.skip('no real data beside the checkout')
    return folder


class LocalServer:
    "A web server in a thread of its own, at `base`; a subclass says in `answer` what a request gets."
    def __init__(self):
        outer = self
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self): outer.answer(self)
            def log_message(self, *args): pass
        self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.base = f'http://127.0.0.1:{self.http.server_port}'
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self): self.http.shutdown(); self.http.server_close()


@pytest.fixture
def serve(monkeypatch):
    "Called with a subclass of `LocalServer`: one that is stopped after the test, with no proxy before it."
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    started = []
    def start(kind):
        started.append(kind())
        return started[-1]
    yield start
    for s in started: s.stop()


@pytest.fixture(scope='session')
def record():
    "Folder of the demo's tiny record."
    from demo_server import tiny_run
    return tiny_run()


@pytest.fixture(scope='module')
def site(record, tmp_path_factory):
    "The demo, served by a process of its own."
    from demo_server import Server
    s = Server(record, tmp_path_factory.mktemp('site'))
    yield s
    s.stop()
