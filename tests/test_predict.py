"Prediction from records: every kind of model gives back what its record stored, and its ONNX file agrees; records that were tampered with; nothing is unpickled."
import io, pickle, shutil, sys
from contextlib import redirect_stdout

import numpy as np, pandas as pd, pytest, torch
from PIL import Image

from skincancer.core import DataError, read_json, write_json
from skincancer.data.cohorts import load_cohort
from skincancer.data.images import Preprocess
from skincancer.data.metadata import make_encoder
from skincancer.data.simulate import Simulation
from skincancer.predict import check_onnx, export_onnx, load_run, read_picture, save_reference
from skincancer.training import experiment as ex
from skincancer.training.runs import publish_run, start_run

TINY = dict(dataset='simulated', fusion='late', backbone='resnet10t', size=32, freeze_encoder=False, epochs=1, lr=None, encoder_lr=None, dropout=None, weight_decay=None, batch_size=32, width=32,
            seed=0, n_boot=100, features='leak_free', class_weight_power=1., encoder_weights=None, augment='none')


@pytest.fixture(scope='module')
def room(tmp_path_factory):
    "A place for runs, a small cohort, and a file of encoder weights, as frozen runs need weights that can be had again."
    from safetensors.torch import save_file
    root = tmp_path_factory.mktemp('predict')
    torch.manual_seed(1)
    save_file({k: v.contiguous() for k, v in ex.create_encoder('resnet10t', pretrained=False).state_dict().items()}, root/'encoder.safetensors')
    return root, load_cohort('simulated', simulation=Simulation(n_lesions=100), verbose=False)


@pytest.fixture(scope='module')
def make(room):
    "Train, record and remember toy runs."
    root, cohort = room
    made = {}
    def one(**more):
        key = str(sorted(more.items()))
        if key not in made: made[key] = train(root, cohort, **more)
        return made[key]
    return one


def weights_of(run, room): return room[0]/'encoder.safetensors' if run.params['freeze_encoder'] else None


def train(root, cohort, **more):
    params = ex.resolve(TINY | (dict(encoder_weights=str(root/'encoder.safetensors')) if more.get('freeze_encoder') else {}) | more)
    table, cache = ex.usable_images(cohort, Preprocess(params['size']), cache_dir=root, progress=False)
    split, frozen = ex.choose_split(table), params['freeze_encoder']
    rows, encoder = ex.split_rows(table, split), ex.choose_encoder(params, pretrained=False)
    metadata = make_encoder('simulated', params['features']).fit(table.iloc[rows['train']])
    data = ex.model_inputs(cohort, table, cache, metadata, encoder if frozen else None, params['fusion'], **(dict(cache_dir=root, progress=False) if frozen else {}))
    model = ex.build_model(params['fusion'], encoder, frozen, data.tab.shape[1], 5, heads=params.get('heads', 8), width=params['width'], dropout=params['dropout'])
    run = start_run('toy', params, cohort, split, encoder, runs_dir=root/'runs')
    with redirect_stdout(io.StringIO()): history, predict = ex.train(model, data, rows, params, cohort, table, metadata.missing_row())
    proba = {k: predict(data, rows[k]) for k in ('valid', 'test')}
    save_reference(run.folder, model, data, rows, n=50)
    ex.record(run, cohort, split, params, history, proba, model, ex.inference(params, cohort, data, rows, Preprocess(params['size']), encoder, metadata))
    return run, table.set_index('image_id').loc[list(split.test)], proba['test']


KINDS = [dict(fusion=f, freeze_encoder=z) for f in ('image', 'metadata', 'late', 'film', 'cross_attention', 'metablock', 'metanet', 'gated') for z in (False, True)]
KINDS += [dict(features='none'), dict(fusion='image', tta=3), dict(fusion='cross_attention', heads=4), dict(backbone='vit_tiny_patch16_224', fusion='metablock', size=64), dict(fusion='MultiModalCNNFusion', backbone=None), dict(fusion='SpatialVisionFusion', backbone=None, size=64)]
name = lambda o: '-'.join(f'{v}' for v in o.values())


@pytest.mark.parametrize('kind', KINDS, ids=name)
def test_every_model_gives_back_what_its_record_stored(make, room, kind):
    run, test, stored = make(**kind)
    p = load_run(run.folder, device='cpu', encoder_weights=weights_of(run, room))
    got = p.predict_proba(test.path, test[list(p.fields)], calibrated=False)
    assert np.abs(got - stored).max() < 1e-5
    one = p.predict(test.path.iloc[0], explain=True)[0]
    assert abs(sum(one.weighed.values()) - one.probabilities[one.label]) < 1e-9 and one.label in one.conformal
    assert (one.heatmap is None) == (kind.get('fusion') == 'metadata')
    if kind.get('fusion') == 'metadata': assert one.weighed['image'] == 0 and one.ood_kind == 'confidence'
    else: assert one.heatmap.shape == 2*(p.preprocess.size,) and np.isfinite(one.heatmap).all() and one.ood_kind == 'features'
    if kind.get('fusion') == 'image' or kind.get('features') == 'none': assert one.weighed['metadata'] == 0


@pytest.mark.parametrize('kind', [dict(fusion='metablock', freeze_encoder=True), dict(fusion='image', tta=3), dict(fusion='metadata'), dict(features='none'),
                                  dict(backbone='vit_tiny_patch16_224', fusion='metablock', size=64), dict(fusion='cross_attention', heads=4)], ids=name)
def test_onnx_agrees(make, room, kind, tmp_path, capfd):
    run, test, _ = make(**kind)
    p = load_run(run.folder, device='cpu', encoder_weights=weights_of(run, room))
    assert export_onnx(tmp_path/'model.onnx', p) < 1e-4
    assert [o.name for o in tmp_path.iterdir()] == ['model.onnx']
    import onnxruntime
    session = onnxruntime.InferenceSession(str(tmp_path/'model.onnx'), providers=['CPUExecutionProvider'])
    x, tab = next(p._batches(test.path[:5], test[list(p.fields)][:5], 8))
    given = dict(image=x.transpose(0, 3, 1, 2).astype(np.float32)/255, tab=tab)
    own, calibrated = session.run(['own', 'probabilities'], {i.name: given[i.name] for i in session.get_inputs()})
    assert np.abs(own - p.predict_proba(test.path[:5], test[list(p.fields)][:5], calibrated=False)).max() < 1e-4
    assert np.abs(calibrated - p.predict_proba(test.path[:5], test[list(p.fields)][:5])).max() < 1e-4


def test_an_export_that_disagrees_is_noticed_and_leaves_nothing_behind(make, tmp_path, capfd, monkeypatch):
    a, b = (load_run(make(**k)[0].folder, device='cpu') for k in ({}, dict(class_weight_power=0.)))
    export_onnx(tmp_path/'a.onnx', a)
    assert check_onnx(tmp_path/'a.onnx', b) > 1e-4
    monkeypatch.setattr('skincancer.predict.check_onnx', lambda *a: 1e-3)
    with pytest.raises(ValueError, match='Nothing was written'): export_onnx(tmp_path/'b.onnx', a)
    assert [o.name for o in tmp_path.iterdir()] == ['a.onnx']


def test_nothing_is_unpickled_and_no_network_is_asked(make, monkeypatch):
    run, test, stored = make()
    def never(*a, **k): raise AssertionError('unpickled or asked the network')
    for mod, n in ((pickle, 'load'), (pickle, 'loads'), (pickle, 'Unpickler'), (torch, 'load')): monkeypatch.setattr(mod, n, never)
    monkeypatch.setattr('skincancer.models.encoders._from_hub', never)
    monkeypatch.setattr('skincancer.models.encoders.packaged_state', never)
    p = load_run(run.folder)
    assert np.abs(p.predict_proba(test.path[:3], test[list(p.fields)][:3], calibrated=False) - stored[:3]).max() < 1e-5


def test_opening_is_deterministic_and_reads_no_test_row(make, room, tmp_path):
    run, *_ = make(fusion='late', freeze_encoder=True)
    other = shutil.copytree(run.folder, tmp_path/run.id)
    t = pd.read_parquet(other/'predictions.parquet')
    t = t[t.split == 'valid']
    t.to_parquet(other/'predictions.parquet', index=False)
    a, b = (load_run(o, encoder_weights=weights_of(run, room)) for o in (run.folder, other))
    assert (a.calibrator.to_dict(), a.conformal.to_dict(), a.ood_limit) == (b.calibrator.to_dict(), b.conformal.to_dict(), b.ood_limit)


def test_the_promised_share_of_validation_images_is_let_in(make, room):
    run, *_ = make(fusion='late', freeze_encoder=True)
    p = load_run(run.folder, alpha=.4, keep=.8, encoder_weights=weights_of(run, room))
    t = run.predictions().query("split == 'valid'")
    inside = p.conformal.sets(t[[f'p_{c}' for c in p.classes]].to_numpy(float))
    assert all(inside[t.label == c, i].mean() >= .6 for i, c in enumerate(p.classes) if (t.label == c).any())
    assert (p.reference['valid'] <= p.ood_limit).mean() >= .8


def test_published_and_damaged_records(make, room, tmp_path):
    run, *_ = make()
    with pytest.raises(FileNotFoundError, match='published in results/'): load_run(publish_run(run, tmp_path/'results'))
    bad = shutil.copytree(run.folder, tmp_path/run.id)
    how, weights = read_json(bad/'preprocessing.json'), (bad/'model.safetensors').read_bytes()
    for junk in (b'', b'junk', pickle.dumps(dict(a=1)), weights[:len(weights)//2]):
        (bad/'model.safetensors').write_bytes(junk)
        with pytest.raises(DataError, match='does not hold the weights'): load_run(bad)
    (bad/'model.safetensors').write_bytes(weights)
    write_json(bad/'preprocessing.json', {k: v for k, v in how.items() if k != 'model'})
    with pytest.raises(DataError, match='lacks model'): load_run(bad)
    (bad/'metrics.json').unlink()
    with pytest.raises(FileNotFoundError, match='not finished'): load_run(bad)


def test_frozen_weights_that_changed_are_refused(make, room, tmp_path):
    root, cohort = room
    run, *_ = make(fusion='late', freeze_encoder=True)
    from safetensors.torch import save_file
    save_file({k: v.contiguous() for k, v in ex.create_encoder('resnet10t', pretrained=False).state_dict().items()}, tmp_path/'others.safetensors')
    with pytest.raises(DataError, match='the weights that can be had here'): load_run(run.folder, encoder_weights=tmp_path/'others.safetensors')
    assert load_run(run.folder, encoder_weights=root/'encoder.safetensors')


def test_a_record_without_features_falls_back_and_says_so(make, tmp_path):
    run, test, _ = make()
    bare = shutil.copytree(run.folder, tmp_path/run.id, ignore=shutil.ignore_patterns('reference.safetensors'))
    assert load_run(bare).predict(test.path.iloc[0])[0].ood_kind == 'confidence'


@pytest.mark.parametrize('fmt', ['JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF', 'GIF'])
def test_every_format_is_read_and_every_cut_file_refused(fmt):
    "Except in formats without an end, where only the header can be missing, a shortened file is an error and never a half-grey picture."
    x = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    Image.fromarray(x).save(f := io.BytesIO(), fmt)
    data = f.getvalue()
    assert read_picture(data).shape == (64, 48, 3)
    for n in (1, 10, len(data)//2, len(data) - 40):
        with pytest.raises(DataError): read_picture(data[:n])


@pytest.mark.parametrize('made', ['png', 'gif', 'tiff', 'bmp'])
def test_bombs_are_refused_by_their_header(made):
    "A header that claims many pixels is enough; nothing is allocated."
    def claims(fmt, w, h):
        Image.new('RGB', (64, 64)).save(f := io.BytesIO(), fmt)
        b = bytearray(f.getvalue())
        if fmt == 'GIF': b[6:10] = w.to_bytes(2, 'little') + h.to_bytes(2, 'little')
        if fmt == 'BMP': b[18:26] = w.to_bytes(4, 'little') + h.to_bytes(4, 'little')
        return bytes(b)
    if made in ('png', 'tiff'):
        Image.new('1', (12_000, 12_000)).save(f := io.BytesIO(), made.upper(), **(dict(compression='group4') if made == 'tiff' else {}))
        data = f.getvalue()
        assert len(data) < 200_000
    else: data = claims(made.upper(), 60_000, 60_000)
    import tracemalloc
    tracemalloc.start()
    with pytest.raises(DataError, match='pixels'): read_picture(data)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize('data', [b'%PDF-1.7 ...', b'PK\x03\x04' + bytes(99), pickle.dumps([1]), b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n', b'<svg xmlns="http://www.w3.org/2000/svg"/>', b'P6 99 99 255 ' + bytes(99*99*3), '\0'])
def test_other_files_are_not_images(data):
    with pytest.raises((DataError, ValueError, FileNotFoundError)): read_picture(data)


def test_without_the_extra_the_export_names_it(make, monkeypatch):
    run, *_ = make()
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'skincancer\[export\]'"): export_onnx('x.onnx', run)
