"The image cache under fire: killed, raced, damaged, without room, from another version."
import errno, io, os, pickle, shutil, signal, subprocess, sys, textwrap, time, zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np, pandas as pd, pytest
from filelock import FileLock
from PIL import Image, ImageFile

import skincancer.data.images as images
from skincancer.core import DataError
from skincancer.data.images import CHUNK, ImageCache, Preprocess, build_cache, file_digests, open_image

PRE, N = Preprocess(32), 5*CHUNK + 7
Usage = namedtuple('Usage', 'total used free')

def jpeg(i, size=(60, 45)):
    x = np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(x).resize(size).save(f := io.BytesIO(), 'JPEG')
    return f.getvalue()

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Half of the images in a zip archive, half in a folder."
    d, rows = tmp_path_factory.mktemp('data'), []
    with zipfile.ZipFile(d/'part.zip', 'w') as z:
        for i in range(N):
            if i % 2: z.writestr(f'in/i{i:04}.jpg', jpeg(i))
            else: (d/f'i{i:04}.jpg').write_bytes(jpeg(i))
            rows.append((f'i{i:04}', str(d/'part.zip'/'in'/f'i{i:04}.jpg') if i % 2 else str(d/f'i{i:04}.jpg')))
    return pd.DataFrame(rows, columns=['image_id', 'path'])

@pytest.fixture(scope='module')
def truth(data): return np.stack([PRE.load(p) for p in data.path])

def build(data, d, **kw): return build_cache(data, PRE, d, **{'n_workers': 0, 'progress': False, **kw})
def folder_of(data, d, pre=PRE): return Path(d)/'images'/images._plan(data, pre)[1]

@pytest.fixture
def loads(monkeypatch):
    "Names of the images that are decoded during a test."
    seen, load = [], Preprocess.load
    monkeypatch.setattr(Preprocess, 'load', lambda self, p: (seen.append(Path(p).stem), load(self, p))[1])
    return seen

def script(tmp_path, body, data, **kw):
    "Start a script without a main guard, as a user would write it, in a process group of its own."
    data.to_csv(tmp_path/'table.csv', index=False)
    (tmp_path/'script.py').write_text(textwrap.dedent(f'''
        import sys, time, pandas as pd
        import skincancer.data.images as images
        from skincancer.data.images import Preprocess, build_cache
        table = pd.read_csv({str(tmp_path/'table.csv')!r})
        def build(**kw): return build_cache(table, Preprocess(32), {str(tmp_path/'cache')!r}, progress=False, **kw)
        ''') + textwrap.dedent(body))
    env = {**os.environ, 'PYTHONPATH': str(Path(images.__file__).parents[2]), 'PYTHONUNBUFFERED': '1'}
    return subprocess.Popen([sys.executable, tmp_path/'script.py'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
                            start_new_session=True, **kw)

def wait_for(f, seconds=20):
    end = time.time() + seconds
    while time.time() < end:
        if v := f(): return v
        time.sleep(.01)
    raise TimeoutError('waited in vain')

# ---- the plain case, in one process and in several

@pytest.mark.parametrize('n_workers', [0, 2])
def test_bytes_are_those_of_load(data, truth, tmp_path, n_workers):
    c = build(data, tmp_path, n_workers=n_workers)
    assert len(c) == N and (c.array == truth).all()
    assert (pickle.loads(pickle.dumps(c))[['i0005', 'i0000']] == truth[[5, 0]]).all()
    assert np.load(c.folder/'images.npy').shape == (N, 32, 32, 3)

def test_workers_in_a_script_without_a_main_guard(data, truth, tmp_path):
    p = script(tmp_path, 'print(build(n_workers=2))', data)
    out = p.communicate(timeout=60)[0]
    assert p.returncode == 0 and f'ImageCache({N} images' in out, out
    assert (ImageCache(folder_of(data, tmp_path/'cache')).array == truth).all()

def test_the_key_ignores_order_and_place_but_not_content(data, tmp_path):
    few = data[1:20:2]
    key = lambda t, pre=PRE: images._plan(t, pre)[1]
    shutil.copytree(Path(data.path[0]).parent, tmp_path/'moved')
    moved = few.assign(path=[p.replace(str(Path(data.path[0]).parent), str(tmp_path/'moved')) for p in few.path])
    assert key(few) == key(few.sample(frac=1, random_state=0)) == key(moved)
    assert len({key(few), key(few[1:]), key(few, Preprocess(33)), key(few, Preprocess(32, colour_constancy=True))}) == 4
    file = data[:1].assign(path=str(tmp_path/'moved'/'i0000.jpg'))
    before = key(file)
    os.utime(file.path[0], ns=(1, 1))
    assert key(file) != before

# ---- killed half-way

@pytest.mark.parametrize('n_workers', [0, 2])
def test_kill_9_then_resume(data, truth, tmp_path, loads, n_workers):
    slow = '''
        fill = images._fill_chunk
        def slow(*a, **kw):
            time.sleep(.3)
            return fill(*a, **kw)
        images._fill_chunk = slow
        build(n_workers=%d)''' % n_workers
    p, folder = script(tmp_path, slow, data), folder_of(data, tmp_path/'cache')
    wait_for(lambda: (folder/'index.json').exists() and 2 <= sum((folder/'done').read_bytes()))
    os.killpg(p.pid, signal.SIGKILL)
    p.communicate()
    done = (folder/'done').read_bytes()
    assert 2 <= sum(done) < len(done) and not (folder/'finished').exists()
    with pytest.raises(DataError, match='no finished image cache'): ImageCache(folder)
    c = build(data, tmp_path/'cache')
    assert set(loads) == {f'i{i:04}' for i in range(N) if not done[i//CHUNK]}  # what was finished is not done again
    assert (c.array == truth).all() and len(c.quarantine) == 0

def test_interrupted_before_anything_is_allocated(data, truth, tmp_path, capsys):
    folder_of(data, tmp_path).mkdir(parents=True)
    assert (build(data, tmp_path).array == truth).all()
    assert 'index.json is missing' in capsys.readouterr().out

def test_ctrl_c_keeps_what_is_done(data, truth, tmp_path, monkeypatch, loads):
    fill = images._fill_chunk
    def until_2(folder, chunk, *a, **kw):
        if chunk == 2: raise KeyboardInterrupt
        return fill(folder, chunk, *a, **kw)
    monkeypatch.setattr(images, '_fill_chunk', until_2)
    with pytest.raises(KeyboardInterrupt): build(data, tmp_path)
    monkeypatch.setattr(images, '_fill_chunk', fill)
    loads.clear()
    assert (build(data, tmp_path).array == truth).all()
    assert len(loads) == N - 2*CHUNK

# ---- a full disk

def test_too_little_room_is_said_before_anything_is_written(data, tmp_path, monkeypatch):
    monkeypatch.setattr(images.shutil, 'disk_usage', lambda p: Usage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match=r'needs 0\.001 GB, 0\.000 GB are free in .*SKINCANCER_CACHE') as e: build(data, tmp_path)
    assert e.value.errno == errno.ENOSPC and not folder_of(data, tmp_path).exists()

def test_allocation_refused_by_the_system(data, tmp_path, monkeypatch):
    def full(*a): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(images.os, 'posix_fallocate', full)
    with pytest.raises(OSError, match='No room on the disk'): build(data, tmp_path)
    assert not folder_of(data, tmp_path).exists()

def test_disk_full_while_writing_loses_nothing(data, truth, tmp_path, monkeypatch, loads):
    mark = images._mark
    def full(f, pos, b):
        if isinstance(b, np.ndarray) and sum((folder_of(data, tmp_path)/'done').read_bytes()) == 3: raise OSError(errno.ENOSPC, 'No space left on device')
        mark(f, pos, b)
    monkeypatch.setattr(images, '_mark', full)
    with pytest.raises(OSError, match='run the same call again; what is finished is kept'): build(data, tmp_path)
    monkeypatch.setattr(images, '_mark', mark)
    loads.clear()
    assert (build(data, tmp_path).array == truth).all()
    assert len(loads) == N - 3*CHUNK

# ---- another version, damage

def test_another_version_is_left_alone(data, truth, tmp_path, monkeypatch):
    old = build(data, tmp_path)
    monkeypatch.setattr(images, 'CACHE_VERSION', images.CACHE_VERSION + 1)
    new = build(data, tmp_path)
    assert new.key != old.key and (new.array == truth).all() and (old.array == truth).all()
    with pytest.raises(DataError, match='cache format 1, this is format 2'): ImageCache(old.folder)

def cut(f): os.truncate(f, f.stat().st_size - 1)
@pytest.mark.parametrize('name, harm, said', [
    ('images.npy', cut, 'images.npy has'), ('images.npy', Path.unlink, 'images.npy has 0 bytes'), ('done', cut, 'done has'),
    ('index.json', lambda f: os.truncate(f, 100), 'index.json cannot be read'), ('index.json', lambda f: f.write_text('[]'), 'index.json cannot be read'),
    ('index.json', lambda f: f.write_bytes(b'\xff\xfe'), 'index.json cannot be read'), ('images.npy', lambda f: f.open('r+b').write(b'xx'), 'header')])
def test_damage_is_said_and_repaired(data, truth, tmp_path, capsys, name, harm, said):
    few = data[:9]
    harm(build(few, tmp_path).folder/name)
    c = build(few, tmp_path)
    out = capsys.readouterr().out
    assert 'Damaged image cache, built again' in out and said in out
    assert (c.array == truth[:9]).all()

# ---- two at once

def test_the_second_builder_waits_and_says_so(data, truth, tmp_path):
    folder = folder_of(data, tmp_path/'cache')
    folder.parent.mkdir(parents=True)
    with FileLock(f'{folder}.lock'):
        p = script(tmp_path, 'build(n_workers=0)', data)
        assert 'waiting for it' in p.stdout.readline()
        assert not folder.exists()
    assert p.wait(30) == 0
    p.stdout.close()
    assert (ImageCache(folder).array == truth).all()

def test_three_builders_at_once(data, truth, tmp_path):
    places = [tmp_path/str(i) for i in range(3)]
    for q in places:
        q.mkdir()
        (q/'cache').symlink_to(tmp_path, target_is_directory=True)
    ps = [script(q, 'n = []; load = Preprocess.load\nPreprocess.load = lambda s, p: n.append(p) or load(s, p)\nbuild(n_workers=0); print("decoded", len(n))', data)
          for q in places]
    outs = [p.communicate(timeout=60)[0] for p in ps]
    assert sorted(int(o.split('decoded')[1]) for o in outs) == [0, 0, N], outs
    assert (ImageCache(folder_of(data, tmp_path)).array == truth).all()

# ---- bad files

@pytest.fixture
def bad(data, tmp_path):
    "Ten images of which two are cut, one is missing from its archive, one file is missing, and one row has no path."
    t = data[:12].copy()
    whole = Path(t.path[0]).read_bytes()
    (tmp_path/'cut.jpg').write_bytes(whole[:-100])
    (tmp_path/'page.jpg').write_bytes(b'<html>')
    t.loc[[0, 2, 4], 'path'] = [str(tmp_path/n) for n in ('cut.jpg', 'page.jpg', 'gone.jpg')]
    t.loc[5, 'path'] = t.path[5].replace('i0005', 'i9999')
    t.loc[6, 'path'] = None
    return t

@pytest.mark.parametrize('n_workers', [0, 2])
def test_quarantine_names_files_and_reasons(bad, truth, tmp_path, capsys, n_workers):
    c = build(bad, tmp_path, n_workers=n_workers)
    assert f'4 of 11 images cannot be read and are left out; named in {c.folder/"quarantine.csv"}' in capsys.readouterr().out
    q = pd.read_csv(c.folder/'quarantine.csv').set_index('image_id')
    assert q.path.to_dict() == {i: bad.set_index('image_id').path[i] for i in ('i0000', 'i0002', 'i0004', 'i0005')}
    assert [r.split()[0] for r in q.reason] == ['truncated:', 'not', 'no', 'no']
    assert len(c) == 7 and (c[c.ids] == truth[[1, 3, 7, 8, 9, 10, 11]]).all()
    for i in q.index:
        with pytest.raises(DataError, match=f'quarantine: {i}'): c.rows(['i0001', i])
    with pytest.raises(DataError, match='not in cache .*: i0006'): c['i0006']
    build(bad, tmp_path)
    assert '4 of 11 images' in capsys.readouterr().out  # said each time

def test_a_member_with_a_flipped_bit_and_its_repair(data, truth, tmp_path, capsys):
    "The directory of the archive is unharmed, so the key stays; the repaired image is still taken up."
    src = Path(data.path[0]).parent/'part.zip'
    raw = bytearray(src.read_bytes())
    info = zipfile.ZipFile(src).getinfo('in/i0003.jpg')
    raw[info.header_offset + 30 + len(info.filename) + info.file_size//2] ^= 255
    (tmp_path/'part.zip').write_bytes(raw)
    t = data[1:10:2].assign(path=[p.replace(str(src), str(tmp_path/'part.zip')) for p in data.path[1:10:2]])
    c = build(t, tmp_path)
    assert c.quarantine.image_id.tolist() == ['i0003'] and 'damaged in its archive' in c.quarantine.reason[0]
    shutil.copy(src, tmp_path/'part.zip')
    again = build(t, tmp_path)
    assert again.key == c.key and len(again.quarantine) == 0 and (again[t.image_id] == truth[1:10:2]).all()

@pytest.mark.parametrize('at', ['_write_quarantine', '_mark'])
def test_killed_while_retrying_keeps_the_quarantine_honest(bad, tmp_path, monkeypatch, at):
    folder = build(bad, tmp_path).folder
    (folder/'finished').unlink()
    def killed(*a): raise KeyboardInterrupt
    monkeypatch.setattr(images, at, killed)
    with pytest.raises(KeyboardInterrupt): build(bad, tmp_path)
    monkeypatch.undo()
    (folder/'quarantine.csv').unlink()  # and even without the list
    assert build(bad, tmp_path).quarantine.image_id.tolist() == ['i0000', 'i0002', 'i0004', 'i0005']

@pytest.mark.parametrize('name', ['quarantine.csv', 'finished'])
@pytest.mark.parametrize('harm', [Path.unlink, lambda f: f.write_text(''), lambda f: f.write_text('image_id,path,reason\n'), lambda f: f.write_text('{}')])
def test_a_lost_quarantine_never_turns_broken_images_into_black_ones(bad, tmp_path, name, harm):
    harm(build(bad, tmp_path).folder/name)
    c = build(bad, tmp_path)
    assert len(c) == 7 and c.quarantine.image_id.tolist() == ['i0000', 'i0002', 'i0004', 'i0005']

def test_nothing_readable_and_nothing_there(bad, data, tmp_path):
    with pytest.raises(DataError, match='None of the 2 images can be read.*truncated'): build(bad.loc[[0, 2]], tmp_path)
    with pytest.raises(DataError, match='None of the 1 rows'): build(bad.loc[[6]], tmp_path)
    with pytest.raises(FileNotFoundError, match='absent.zip: no such archive'): build(data[:1].assign(path='/absent.zip/x.jpg'), tmp_path)
    (tmp_path/'half.zip').write_bytes(b'PK\3\4 and nothing more')
    with pytest.raises(DataError, match='half.zip: not a complete zip archive'): build(data[:1].assign(path=f'{tmp_path}/half.zip/x.jpg'), tmp_path)

def test_an_unreadable_disk_is_an_error_not_a_bad_image(data, tmp_path, monkeypatch):
    def broken(p): raise OSError(errno.EIO, 'Input/output error', str(p))
    monkeypatch.setattr(images, 'read_bytes', broken)
    with pytest.raises(OSError, match='Input/output error'): build(data, tmp_path)

@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'progressive'])
def test_every_truncation_is_noticed(tmp_path, kind):
    x = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    f, path = io.BytesIO(), tmp_path/'t.img'
    Image.fromarray(x).save(f, 'JPEG' if kind == 'progressive' else kind, **({'progressive': True} if kind == 'progressive' else {}))
    whole = f.getvalue()
    for n in [*range(0, len(whole)-20, 97), *range(len(whole)-20, len(whole)-(8 if kind == 'PNG' else 0))]:  # the last 8 bytes of a PNG are a name and its checksum
        path.write_bytes(whole[:n])
        with pytest.raises(DataError, match='t.img'): open_image(path)
    path.write_bytes(whole)
    assert open_image(path).size == (50, 40)

@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_truncation_is_noticed_when_pillow_was_told_to_be_lenient(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    Image.open(io.BytesIO(jpeg(1))).save(f := io.BytesIO(), kind)
    (tmp_path/'t').write_bytes(f.getvalue()[:-40])
    with pytest.raises(DataError, match='truncated'): open_image(tmp_path/'t')

# ---- archives and processes

def test_a_forked_reader_has_its_own_handle(data):
    import multiprocessing as mp
    paths = data.path[1::2].tolist()
    first = [open_image(p).tobytes() for p in paths]
    with mp.get_context('fork').Pool(2) as pool: assert pool.map(_pixels, paths, chunksize=3) == first

def _pixels(p): return open_image(p).tobytes()

def test_threads_share_an_archive(data):
    from concurrent.futures import ThreadPoolExecutor
    paths = data.path[1::2].tolist()*3
    with ThreadPoolExecutor(8) as ex: assert list(ex.map(_pixels, paths)) == [_pixels(p) for p in paths]

def test_digests_are_true_to_the_bytes(data, tmp_path):
    copies = []
    for i, p in enumerate(data.path[:40]):
        copies.append(tmp_path/f'c{i}.jpg')
        copies[-1].write_bytes(images.read_bytes(p))
    paths = [*data.path, *map(str, copies)]
    keys = file_digests(paths)
    content = pd.Series([images.read_bytes(p) for p in paths])
    assert (pd.factorize(keys)[0] == pd.factorize(content)[0]).all()
    assert keys.index.tolist() == paths
