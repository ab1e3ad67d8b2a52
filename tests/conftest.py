import os
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
