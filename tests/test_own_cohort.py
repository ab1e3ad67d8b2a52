"A collection that the project does not know, described by its owner: from a folder to a record, an audit and a card."
import zipfile
from io import BytesIO

import numpy as np, pandas as pd, pytest
from PIL import Image

from skincancer.core import read_json
from skincancer.data.simulate import Simulation, _shape, _view, draw_lesions, render
from skincancer.predict import load_run
from test_chapters import finished, papermill, printed


@pytest.fixture(scope='module')
def clinic(tmp_path_factory):
    "Ninety patients with one or two photographs each, in a zip."
    root = tmp_path_factory.mktemp('data')
    folder = root/'our_clinic'; folder.mkdir()
    rng, rows = np.random.default_rng(0), []
    lesions = draw_lesions(Simulation(n_lesions=90))
    with zipfile.ZipFile(folder/'photos.zip', 'w') as z:
        for i, o in enumerate(lesions.itertuples()):
            for j in range(1 + i % 2):
                data = BytesIO(); Image.fromarray(render(o, _shape(rng, o.border == 1), _view(rng))[0]).save(data, 'JPEG')
                z.writestr(f'{i:03d}_{j}.jpg', data.getvalue())
                rows.append(dict(photo=f'{i:03d}_{j}.jpg', patient=f'p{i}', diagnosis='mel' if o.observed < 2 else 'nv', age=30 + i % 50 if i % 7 else '', sex=('female', 'male')[i % 2], ward='AB'[i % 2]))
    pd.DataFrame(rows).to_csv(folder/'visits.csv', index=False)
    (folder/'cohort.yml').write_text('''title: Our clinic
table: visits.csv
classes: [mel, nv]
malignant: [mel]
columns: {photo: image_id, patient: group_id, diagnosis: label}
clinical: {age: [0, 120], sex: [female, male]}
audit: {ward: null}
''')
    return root


def test_it_is_explored_and_trained_like_the_others(clinic, tmp_path):
    job = papermill('01_eda', tmp_path, dataset='our_clinic', data_dir=clinic)
    code, text = finished(job)
    assert code == 0, text[-3000:]
    assert 'Our clinic' in printed(job[1])
    job = papermill('03_multimodal', tmp_path, dataset='our_clinic', data_dir=clinic, runs_dir=tmp_path/'runs', size=32, epochs=1, n_boot=100)
    code, text = finished(job)
    assert code == 0, text[-3000:]
    run = next((tmp_path/'runs').iterdir())
    info = read_json(run/'params.json')
    assert info['data']['name'] == 'our_clinic' and not info['data']['simulated']
    split = read_json(run/'split.json')
    sides = [{i[:3] for i in split[k]} for k in ('train', 'valid', 'test')]
    assert all(sides) and not (sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2])     # patients stay together
    predictor = load_run(run)
    assert set(predictor.fields) == {'age', 'sex'} and predictor.classes == ['mel', 'nv']


def test_a_wrong_description_says_what_is_wrong(clinic, tmp_path):
    bad = tmp_path/'data'/'other'; bad.mkdir(parents=True)
    (bad/'cohort.yml').write_text('table: visits.csv\nclasses: [mel]\ncolumns: {photo: image_id}\n')
    code, text = finished(papermill('03_multimodal', tmp_path, dataset='other', data_dir=bad.parent))
    assert code != 0 and 'columns must name group_id, label' in text
