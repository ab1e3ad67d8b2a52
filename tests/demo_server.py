"The demo in a process of its own, for its tests: tiny model, free port, empty folders all around, and a witness of every file opened for writing."
import atexit, base64, io, os, re, shutil, signal, subprocess, sys, tempfile, threading, time
from functools import lru_cache

import numpy as np
from PIL import Image

from conftest import ROOT

TINY = dict(n_lesions=100, epochs=1, size=32, n_boot=100, width=32)

@lru_cache
def tiny_run(): # folder of a record, made once for all tests of a session
    from skincancer.demo import demo_run
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return demo_run(folder, lambda s: None, **TINY)

# What the process does, with a hook that sees each open() for writing and each new folder from the first request on.
WITNESS = '''
import os, sys
serving = False
def witness(event, args):
    if not serving: return
    if event == 'open' and isinstance(args[0], (str, bytes)) and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND): print('WROTE', args[0], flush=True)
    if event in ('os.mkdir', 'os.rename', 'os.link', 'os.symlink', 'socket.getaddrinfo'): print('WROTE' if event.startswith('os') else 'ASKED', event, args[:2], flush=True)
sys.addaudithook(witness)
from skincancer import demo
def say(line):
    global serving
    print(line, flush=True); serving = line.startswith('Open ') or serving
def companion(dataset, answer): return f'## About {answer.label}\\n\\nA sentence with its source. [1]\\n\\n1. [A page](https://example.org/page)'
demo.serve(sys.argv[1], port=0, companion=companion, say=say)
'''


class Server:
    "Started on `run`; `url` once it answers, `lines` of its output so far."
    def __init__(self, run, folder, command=None):
        self.folders = {k: folder/k for k in ('tmp', 'home', 'cwd', 'cache', 'runs')}
        for o in self.folders.values(): o.mkdir(parents=True)
        env = dict(os.environ, PYTHONPATH=str(ROOT), TMPDIR=str(self.folders['tmp']), HOME=str(self.folders['home']), SKINCANCER_CACHE=str(self.folders['cache']), SKINCANCER_RUNS=str(self.folders['runs']),
                   MPLCONFIGDIR=str(self.folders['home']), PYTHONDONTWRITEBYTECODE='1', PYTHONWARNINGS='ignore', OMP_NUM_THREADS='1')
        env.pop('GRADIO_TEMP_DIR', None)
        self.process = subprocess.Popen(command or [sys.executable, '-c', WITNESS, str(run)], cwd=self.folders['cwd'], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines, self.url = [], None
        threading.Thread(target=self._read, daemon=True).start()
        end = time.monotonic() + 120
        while not self.url and self.process.poll() is None and time.monotonic() < end: time.sleep(.1)
        if not self.url: self.stop(); raise RuntimeError('the demo did not start:\n' + '\n'.join(self.lines))

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if m := re.match(r'Open (http://\S+?)/ ', line): self.url = m[1]

    @property
    def rss(self): # MB
        with open(f'/proc/{self.process.pid}/status') as f: return int(re.search(r'VmRSS:\s+(\d+)', f.read())[1])/1024

    def files(self): # every file and folder around it, with size and time
        return sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for o in self.folders.values() for p in [o, *o.rglob('*')])

    def stop(self):
        if self.process.poll() is None: self.process.send_signal(signal.SIGTERM)
        try: self.process.wait(15)
        except subprocess.TimeoutExpired: self.process.kill(); self.process.wait(5)


def encoded(x, fmt='PNG', **kw): # bytes of a picture
    (x if isinstance(x, Image.Image) else Image.fromarray(x)).save(f := io.BytesIO(), fmt, **kw)
    return f.getvalue()

def as_text(data): return base64.b64encode(data).decode()

def noise(h=64, w=64, seed=0): return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)

def bad_files(): # name -> (bytes, part of what is said)
    png = encoded(noise())
    return dict(pdf=(b'%PDF-1.7 and so on', 'not an image'), svg=(b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'not an image'), cut=(png[:len(png)//2], 'truncated'),
                bomb=(encoded(Image.new('1', (12_000, 12_000))), 'pixels'), tiny=(encoded(noise(8, 8)), 'too few'), deep=(encoded(Image.fromarray(np.ones((40, 40), np.uint16))), '8 bits'),
                film=(encoded(Image.fromarray(noise()), 'GIF', save_all=True, append_images=[Image.fromarray(noise(seed=1))]), 'frames'))
