"Downloads from servers that hang up, lie, forget and ignore; all on this machine."
import errno, hashlib, io, json, os, signal, socket, subprocess, sys, time, zipfile
from dataclasses import replace
from pathlib import Path

import pytest, requests

from conftest import LocalServer
from skincancer.core import DataError
from skincancer.data import download as dl

BODY = bytes(range(256)) * 4000  # 1,024,000 bytes
SHA = hashlib.sha256(BODY).hexdigest()
QUIET = dict(progress=False, wait=0)
ENV = os.environ | dict(PYTHONPATH=str(Path(dl.__file__).parents[2]))  # subprocesses import the package under test


class Server(LocalServer):
    "A file at /f.bin, served as badly as `ranges`, `cut`, `status`, `delay` and `shift` say; `asked` holds (path, Range, status)."
    def __init__(self):
        self.files, self.asked = {'/f.bin': BODY}, []
        self.ranges, self.cut, self.status, self.delay, self.shift = True, [], [], 0, 0
        super().__init__()

    def answer(self, h):
        path, rng = h.path.split('?')[0], h.headers.get('Range')
        status = self.status.pop(0) if self.status else 200 if path in self.files else 404
        body = self.files.get(path, b'')
        start = int(rng.removeprefix('bytes=').removesuffix('-')) if rng and self.ranges and status == 200 else 0
        if start >= len(body) > 0: status = 416
        elif rng and self.ranges and status == 200: status = 206
        self.asked.append((h.path, rng, status))
        h.send_response(status)
        if status == 416: h.send_header('Content-Range', f'bytes */{len(body)}')
        if status == 206: h.send_header('Content-Range', f'bytes {start + self.shift}-{len(body)-1}/{len(body)}')
        rest = body[start:] if status in (200, 206) else b''
        h.send_header('Content-Length', str(len(rest)))
        h.end_headers()
        if self.cut and status in (200, 206): rest = rest[:self.cut.pop(0)]
        for i in range(0, len(rest), 1 << 16):
            try: h.wfile.write(rest[i:i + (1 << 16)])
            except OSError: return
            time.sleep(self.delay)


@pytest.fixture
def server(serve): return serve(Server)


def test_whole_file_by_pooch(server, tmp_path):
    p = dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', sha256=SHA, **QUIET)
    assert p.read_bytes() == BODY and sorted(os.listdir(tmp_path)) == ['checksums.json', 'f.bin']
    assert dl.read_ledger(tmp_path)['f.bin'] == dict(sha256=SHA, bytes=len(BODY), verified='sha256 in the registry')


def test_truncation_without_retry_keeps_the_part_and_the_next_run_asks_for_the_rest(server, tmp_path):
    server.cut = [300_001]
    with pytest.raises(ConnectionError, match='300001 of 1024000 bytes'): dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', sha256=SHA, retries=0, **QUIET)
    assert os.listdir(tmp_path) == ['f.bin.part'] and (tmp_path/'f.bin.part').read_bytes() == BODY[:300_001]
    dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', sha256=SHA, retries=0, **QUIET)
    assert server.asked == [('/f.bin', None, 200), ('/f.bin', 'bytes=300001-', 206)]
    assert (tmp_path/'f.bin').read_bytes() == BODY and not (tmp_path/'f.bin.part').exists()


def test_one_run_survives_several_cuts(server, tmp_path, capsys):
    server.cut = [100_000, 0, 500_000]
    dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', sha256=SHA, **QUIET)
    assert [r for _, r, _ in server.asked] == [None, 'bytes=100000-', 'bytes=100000-', 'bytes=600000-']
    assert 'Trying again (3 of 4)' in capsys.readouterr().err


def test_retries_are_bounded(server, tmp_path):
    server.cut = [0]*50
    with pytest.raises(ConnectionError, match='0 of 1024000'): dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', retries=2, **QUIET)
    assert len(server.asked) == 3


def test_server_that_ignores_range(server, tmp_path):
    server.ranges = False
    (tmp_path/'f.bin.part').write_bytes(b'x'*400_000)
    dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', sha256=SHA, **QUIET)
    assert server.asked == [('/f.bin', 'bytes=400000-', 200)] and (tmp_path/'f.bin').read_bytes() == BODY


def test_part_longer_than_the_file(server, tmp_path):
    (tmp_path/'f.bin.part').write_bytes(BODY + b'more')
    dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', sha256=SHA, **QUIET)
    assert [s for *_, s in server.asked] == [416, 200] and (tmp_path/'f.bin').read_bytes() == BODY


def test_part_that_is_complete(server, tmp_path):
    (tmp_path/'f.bin.part').write_bytes(BODY)
    dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', sha256=SHA, **QUIET)
    assert [s for *_, s in server.asked] == [416] and (tmp_path/'f.bin').read_bytes() == BODY


def test_server_that_sends_another_range_than_asked(server, tmp_path):
    server.shift = 5
    (tmp_path/'f.bin.part').write_bytes(BODY[:1000])
    dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', sha256=SHA, **QUIET)
    assert [s for *_, s in server.asked] == [206, 200]


def test_rotten_part_is_caught_by_the_checksum_and_does_not_poison_the_next_run(server, tmp_path):
    (tmp_path/'f.bin.part').write_bytes(b'\0'*1000)
    with pytest.raises(DataError, match=f'expected sha256:{SHA} but got'): dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', sha256=SHA, **QUIET)
    assert os.listdir(tmp_path) == []
    dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', sha256=SHA, **QUIET)


def test_wrong_checksum_names_both_and_leaves_nothing(server, tmp_path):
    got = hashlib.md5(BODY).hexdigest()
    with pytest.raises(DataError, match=f'expected md5:{"0"*32} but got {got}'):
        dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', published=lambda: 'md5:' + '0'*32, **QUIET)
    assert os.listdir(tmp_path) == []


def test_forced_download_that_fails_leaves_the_old_file(server, tmp_path):
    dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', sha256=SHA, **QUIET)
    server.files['/f.bin'] = BODY[::-1]
    with pytest.raises(DataError): dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', sha256=SHA, force=True, **QUIET)
    assert (tmp_path/'f.bin').read_bytes() == BODY


def test_404_is_asked_once_and_503_again(server, tmp_path):
    with pytest.raises(ConnectionError, match=r'/no\.bin could not be had: the server answered 404'): dl.fetch(f'{server.base}/no.bin', tmp_path/'no.bin', **QUIET)
    assert len(server.asked) == 1
    server.status = [503, 429]
    dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', sha256=SHA, **QUIET)
    assert [s for *_, s in server.asked[1:]] == [503, 429, 200]


def test_silent_server_times_out(tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as s:
        with pytest.raises(ConnectionError, match='did not answer in time'):
            dl.fetch(f'http://127.0.0.1:{s.getsockname()[1]}/f.bin', tmp_path/'f.bin', retries=0, timeout=.2, **QUIET)


def test_no_network(tmp_path):
    with pytest.raises(ConnectionError) as e: dl.fetch('http://127.0.0.1:9/f.bin', tmp_path/'f.bin', retries=0, **QUIET)
    assert 'http://127.0.0.1:9/f.bin' in str(e.value) and 'is there a network?' in str(e.value) and '0x' not in str(e.value)


def test_disk_too_small_is_noticed_before_writing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(dl.shutil, 'disk_usage', lambda p: type('U', (), dict(free=1000)))
    with pytest.raises(OSError, match='is full: f.bin has 1024000 bytes') as e: dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', **QUIET)
    assert e.value.errno == errno.ENOSPC and not (tmp_path/'f.bin').exists() and len(server.asked) == 1


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs the device that is always full')
def test_disk_full_while_writing(server, tmp_path):
    (tmp_path/'f.bin.part').symlink_to('/dev/full')
    with pytest.raises(OSError, match='make room and run the same command again') as e: dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', **QUIET)
    assert e.value.errno == errno.ENOSPC and not (tmp_path/'f.bin').exists()


def test_killed_half_way(server, tmp_path):
    server.delay = .05
    code = f'from skincancer.data.download import fetch; fetch("{server.base}/f.bin", r"{tmp_path}/f.bin", sha256="{SHA}", progress=False)'
    p = subprocess.Popen([sys.executable, '-c', code], env=ENV)
    part = tmp_path/'f.bin.part'
    for _ in range(400):
        if part.exists() and part.stat().st_size > 200_000: break
        time.sleep(.05)
    p.send_signal(signal.SIGKILL)
    p.wait()
    had = part.stat().st_size
    assert 200_000 < had < len(BODY) and not (tmp_path/'f.bin').exists()
    server.delay = 0
    dl.fetch(f'{server.base}/f.bin', tmp_path/'f.bin', sha256=SHA, **QUIET)
    assert server.asked[-1] == ('/f.bin', f'bytes={had}-', 206) and (tmp_path/'f.bin').read_bytes() == BODY


def zipped(data=b'pixels'*1000):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z: z.writestr('a.jpg', data)
    return out.getvalue()


def test_first_use_is_trusted_once(server, tmp_path):
    server.files['/a.zip'] = zipped()
    dl.fetch(f'{server.base}/a.zip', tmp_path/'a.zip', **QUIET)
    assert dl.read_ledger(tmp_path)['a.zip']['verified'] == 'first use'
    (tmp_path/'a.zip').write_bytes(zipped(b'other'))
    with pytest.raises(DataError, match='It was left as it is'): dl.fetch(f'{server.base}/a.zip', tmp_path/'a.zip', **QUIET)
    (tmp_path/'a.zip').unlink()
    server.files['/a.zip'] = zipped(b'other')
    with pytest.raises(DataError, match='expected sha256'): dl.fetch(f'{server.base}/a.zip', tmp_path/'a.zip', **QUIET)


def test_unvouched_archive_with_a_rotten_member(server, tmp_path):
    server.files['/a.zip'] = zipped().replace(b'pixels', b'pixelz', 1)
    with pytest.raises(DataError, match=r'not a sound zip archive \(a.jpg\)'): dl.fetch(f'{server.base}/a.zip', tmp_path/'a.zip', **QUIET)
    assert os.listdir(tmp_path) == []


def dataverse(server, rotten=''):
    "Answer as Dataverse does for every file of the registry that lies there; the registry itself is only pointed elsewhere."
    listing, moved = [], {}
    for name in ('ham10000', 'isic2018_test'):
        d = dl.DATASETS[name]
        src = d.sources['publisher']
        for f in src.files:
            body = zipped(f.name.encode()) if f.name.endswith('.zip') else f'image_id,{f.name}\n'.encode()
            server.files[f'/api/access/datafile/{f.key}'] = body
            listing.append(dict(dataFile=dict(id=int(f.key), md5=hashlib.md5(body + rotten.encode()).hexdigest())))
        moved[name] = replace(d, sources=dict(publisher=replace(src, base=server.base, files=tuple(replace(f, sha256='') for f in src.files))))
    server.files['/api/datasets/:persistentId/'] = json.dumps(dict(data=dict(latestVersion=dict(files=listing)))).encode()
    return moved


def test_real_registry_against_a_local_dataverse(server, tmp_path):
    datasets = dataverse(server)
    for name in datasets:
        folder = dl.download(name, tmp_path, datasets=datasets, **QUIET)
        names = {f.name for f in datasets[name].sources['publisher'].files}
        assert {o.name for o in folder.iterdir()} == names | {'checksums.json'}
        assert {o['verified'] for o in dl.read_ledger(folder).values()} == {"publisher's md5"}
    paths = [p for p, *_ in server.asked]
    assert sum('persistentId=doi:10.7910/DVN/DBW86T' in p for p in paths) == 2  # once per data set, not per file
    assert {p for p in paths if 'format=original' in p} == {f'/api/access/datafile/{i}?format=original' for i in (4338392, 6924466)}
    before = len(server.asked)
    dl.download('ham10000', tmp_path, datasets=datasets, **QUIET)
    assert len(server.asked) == before


def test_publishers_checksum_that_does_not_fit(server, tmp_path):
    datasets = dataverse(server, rotten='x')
    with pytest.raises(DataError, match='expected md5:'): dl.download('isic2018_test', tmp_path, datasets=datasets, **QUIET)
    assert os.listdir(tmp_path/'isic2018_test') == []


def test_no_listing_stops_unless_the_user_says_so(server, tmp_path):
    datasets = dataverse(server)
    del server.files['/api/datasets/:persistentId/']
    with pytest.raises(ConnectionError, match='--unverified'): dl.download('isic2018_test', tmp_path, datasets=datasets, **QUIET)
    folder = dl.download('isic2018_test', tmp_path, datasets=datasets, unverified=True, **QUIET)
    assert {o['verified'] for o in dl.read_ledger(folder).values()} == {'first use'}


def test_unreachable_publisher_says_which_files_and_where(tmp_path):
    d = dl.DATASETS['ham10000']
    away = dict(ham10000=replace(d, sources=dict(publisher=replace(d.sources['publisher'], base='http://127.0.0.1:9'))))
    with pytest.raises(ConnectionError) as e: dl.download('ham10000', tmp_path, datasets=away, retries=0, **QUIET)
    for s in ('HAM10000_images_part_1.zip', 'datafile/3172584', str(tmp_path/'ham10000'), 'http://127.0.0.1:9/api/access/datafile/4338392'): assert s in str(e.value)


def test_file_placed_by_hand_is_checked_not_replaced(server, tmp_path):
    datasets = dataverse(server)
    folder = tmp_path/'isic2018_test'
    folder.mkdir()
    (folder/'ISIC2018_Task3_Test_Images.zip').write_bytes(zipped(b'reduced copy'))
    with pytest.raises(DataError, match='left as it is'): dl.download('isic2018_test', tmp_path, datasets=datasets, **QUIET)
    assert (folder/'ISIC2018_Task3_Test_Images.zip').read_bytes() == zipped(b'reduced copy')


@pytest.mark.parametrize('code,error,words', [(403, PermissionError, 'kaggle.json'), (500, ConnectionError, 'could not be had')])
def test_kaggle_refusals(tmp_path, monkeypatch, code, error, words):
    import kagglehub
    def refuse(handle):
        r = requests.Response()
        r.status_code = code
        raise kagglehub.exceptions.KaggleApiHTTPError(f'{code} Error.', response=r)
    monkeypatch.setattr(kagglehub, 'dataset_download', refuse)
    monkeypatch.delenv('KAGGLEHUB_CACHE', raising=False)
    with pytest.raises(error, match=words): dl.download('pad_ufes_20', tmp_path, source='kaggle')
    assert 'KAGGLEHUB_CACHE' not in os.environ


def test_kaggle_does_not_overwrite(tmp_path, monkeypatch):
    import kagglehub
    def give(handle):
        out = Path(os.environ['KAGGLEHUB_CACHE'])/'x'
        out.mkdir(parents=True, exist_ok=True)
        (out/'metadata.csv').write_text('theirs')
        return out
    monkeypatch.setattr(kagglehub, 'dataset_download', give)
    (tmp_path/'pad_ufes_20').mkdir()
    (tmp_path/'pad_ufes_20'/'metadata.csv').write_text('mine')
    with pytest.raises(FileExistsError, match='already there'): dl.download('pad_ufes_20', tmp_path, source='kaggle')
    assert (tmp_path/'pad_ufes_20'/'metadata.csv').read_text() == 'mine'
    (tmp_path/'pad_ufes_20'/'metadata.csv').unlink()
    folder = dl.download('pad_ufes_20', tmp_path, source='kaggle')
    assert sorted(os.listdir(folder)) == ['checksums.json', 'metadata.csv'] and (folder/'metadata.csv').read_text() == 'theirs'


def test_isic_source_brings_table_and_images(server, tmp_path, monkeypatch):
    (tmp_path/'bin').mkdir()
    isic = tmp_path/'bin'/'isic'
    isic.write_text('#!/bin/sh\n[ "$3 $4" = "--collections 67" ] || exit 9\nmkdir -p "$5"; printf "isic_id\\nISIC_1\\n" > "$5/metadata.csv"; touch "$5/ISIC_1.jpg"\n')
    isic.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}/bin:{os.environ["PATH"]}')
    d, moved = dl.DATASETS['isic2018_test'], dataverse(server)['isic2018_test'].sources['publisher']
    datasets = dict(isic2018_test=replace(d, sources=dict(isic=replace(d.sources['isic'], base=server.base, published=moved.published))))
    folder = dl.download('isic2018_test', tmp_path, datasets=datasets, **QUIET)
    assert (folder/'ISIC2018_Task3_Test_GroundTruth.csv').exists() and (folder/'ISIC2018_Task3_Test_Images'/'ISIC_1.jpg').exists()


def shell(folder, *args, **env):
    "Run the command as the script that pip writes for it."
    script = folder/'skincancer_download'
    script.write_text("import sys\nfrom skincancer.data.download import main\nif __name__ == '__main__': sys.exit(main())\n")
    return subprocess.run([sys.executable, script, *args], capture_output=True, text=True, env=ENV | env)


def test_command_lists_and_explains(tmp_path):
    r = shell(tmp_path, '--list')
    assert r.returncode == 0 and all(n in r.stdout for n in dl.DATASETS) and 'CC BY-NC 4.0' in r.stdout
    assert shell(tmp_path).stdout == r.stdout
    r = shell(tmp_path, 'ham1000', '--data_dir', str(tmp_path))
    assert r.returncode == 1 and "Did you mean 'ham10000'?" in r.stderr and 'Traceback' not in r.stderr
    r = shell(tmp_path, '--help')
    assert r.returncode == 0 and all(o in r.stdout for o in ('--data_dir', '--source', '--unverified', '--force'))
    r = shell(tmp_path, 'siim_isic_2020', '--source', 'kaggle', '--data_dir', str(tmp_path), HOME=str(tmp_path), KAGGLE_CONFIG_DIR=str(tmp_path),
        KAGGLE_USERNAME='', KAGGLE_KEY='', KAGGLE_API_TOKEN='')
    assert r.returncode == 1 and 'accept the rules at' in r.stderr and 'Traceback' not in r.stderr


def test_interrupted_command_says_how_to_continue(tmp_path, monkeypatch):
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(dl, 'download', stop)
    with pytest.raises(SystemExit, match='run the same command again'): dl.main('ham10000', data_dir=str(tmp_path))


def test_importing_is_cheap_and_silent():
    code = 'import sys, skincancer.data.download; print(sorted({"requests", "pooch", "kagglehub", "tqdm", "torch"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=ENV).stdout == '[]\n'
