"Loading a module of `skincancer.evaluation` with one thing in its text changed, for the mutation tests."
import importlib.util, types
from pathlib import Path

import pytest


def load(module, old='', new=''):
    "The module as a fresh namespace, with the only occurrence of `old` replaced by `new`."
    src = Path(importlib.util.find_spec(f'skincancer.evaluation.{module}').origin).read_text(encoding='utf-8')
    if old: assert src.count(old) == 1, f'{old!r} occurs {src.count(old)} times in {module}: adapt this mutation to the new text'
    mod = types.ModuleType(f'skincancer.evaluation.{module}')
    mod.__package__ = 'skincancer.evaluation'
    exec(compile(src.replace(old, new) if old else src, f'{module}.py', 'exec'), mod.__dict__)
    return mod


def rejects(message, f, *args, **kw):
    with pytest.raises(ValueError, match=message): f(*args, **kw)
