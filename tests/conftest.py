import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def real_data():
    "The folder of real data sets, or a skip where there is none beside the checkout."
    folder = Path(os.environ.get('SKINCANCER_TEST_DATA', ROOT.parent/'shared'/'data'))
    if not folder.is_dir(): pytest.skip('no real data beside the checkout')
    return folder
