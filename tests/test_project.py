"The project's own files: what they promise of each other."
import configparser, json, re, subprocess, sys
from pathlib import Path

import nbformat, pytest, yaml

import nbdev_filter
from conftest import ROOT, book_files

NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
CHAPTERS = [p for p in NOTEBOOKS if p.parent == ROOT/'nbs']
MODULES = sorted('.'.join(p.relative_to(ROOT).with_suffix('').parts) for p in (ROOT/'skincancer').rglob('*.py') if p.stem not in ('__init__', '_modidx'))


def test_every_module_imports_in_plain_python():
    "A notebook can lend a module a name that the module itself never imported."
    code = 'import importlib, sys\nfor m in sys.argv[1:]: importlib.import_module(m)'
    assert subprocess.run([sys.executable, '-c', code, *MODULES], cwd='/', capture_output=True, text=True).stderr.count('Error') == 0


def test_no_name_is_missing_from_a_module():
    "Names that a module uses and never defines or imports."
    import ast, builtins
    for m in MODULES:
        tree = ast.parse((ROOT/(m.replace('.', '/') + '.py')).read_text())
        known = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)} | {a.arg for a in ast.walk(tree) if isinstance(a, ast.arg)}
        known |= {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))} | {n.name for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler) and n.name}
        known |= {(a.asname or a.name).split('.')[0] for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        assert not used - known - set(dir(builtins)) - {'__file__'}, m


def test_lock_satisfies_settings():
    from packaging.requirements import Requirement
    cfg = configparser.ConfigParser(); cfg.read(ROOT/'settings.ini')
    lines = [l.split(';')[0].strip() for l in (ROOT/'requirements.lock').read_text().splitlines() if l and not l.startswith('#')]
    locked = {re.sub('[-_.]+', '-', n).lower(): v for n, v in (l.split('==') for l in lines)}
    for k in ('requirements', 'dev_requirements'):
        for r in map(Requirement, cfg['DEFAULT'][k].split()): assert r.specifier.contains(locked[re.sub('[-_.]+', '-', r.name).lower()]), r


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_presentable(path):
    nb = nbformat.read(path, 4)
    nbformat.validate(nb)
    code = [c for c in nb.cells if c.cell_type == 'code']
    assert nb.cells[0].cell_type == 'markdown' and re.match(r'# .+\n\n> ', nb.cells[0].source), 'a title and a promise come first'
    assert not any(o.output_type == 'error' for c in code for o in c.outputs)
    assert nb.metadata.kernelspec.language == 'python'
    for c in code:
        lines = [l for l in c.source.splitlines() if l.strip()]
        assert len(lines) <= 40 or 'parameters' in c.metadata.get('tags', []), lines[0]
        nbdev_line, quarto_line = (any(re.match(p, l) for l in lines) for p in (r'#\|\s*(export|hide|default_exp)\b(?!:)', r'#\|\s*[\w-]+:'))
        assert not (nbdev_line and quarto_line) or '#| eval: false' in c.source, c.source[:80]
    text = path.read_text()
    assert not re.search(r'/(root|home|work|tmp)/\w', text), 'a path of one machine'
    assert not re.search(r'<[\w.]+ (object )?at 0x', text), 'an address'


@pytest.mark.parametrize('path', CHAPTERS, ids=lambda p: p.stem)
def test_chapter_parameters(path):
    cells = [c for c in nbformat.read(path, 4).cells if 'parameters' in c.metadata.get('tags', [])]
    assert len(cells) == 1
    lines = cells[0].source.splitlines()
    assert lines[-1].endswith('declared = Parameters(globals())')
    for l in lines[:-1]: assert re.match(r'\w+ = [^=]+# .+', l), f'{l!r} is not one literal with its help'


def test_chapters_share_their_parameters():
    "A parameter means the same, and defaults to the same, in every chapter that has it."
    seen = {}
    for p in CHAPTERS:
        cell = next(c for c in nbformat.read(p, 4).cells if 'parameters' in c.metadata.get('tags', []))
        for l in cell.source.splitlines()[:-1]:
            name, value = (o.strip() for o in l.split('#')[0].split('=', 1))
            assert seen.setdefault(name, value) == value, f'{name} in {p.name}'


def test_quarto_book_names_what_exists():
    "The chapters as Papermill ran them, in report/, and every library notebook; tests/test_report.py looks into them."
    book = yaml.safe_load((ROOT/'_quarto.yml').read_text())['book']
    files = list(book_files(book['chapters']))
    assert all((ROOT/p).is_file() for p in files)
    assert [ROOT/p for p in files if p.startswith('nbs/')] == sorted(p for p in NOTEBOOKS if p.parent.name == 'lib')
    assert {Path(p).stem.split('-')[0] for p in files if p.startswith('report/')} == {p.stem for p in CHAPTERS}


def code(*lines, outputs=(), tags=()): return dict(cell_type='code', source=[f'{l}\n' for l in lines], metadata=dict(tags=list(tags)), outputs=list(outputs))
def filtered(*cells): return nbdev_filter.filter_notebook(dict(cells=list(cells)))['cells']
def sources(cells): return [''.join(c['source']) for c in cells]
def html(text): return dict(output_type='execute_result', data={'text/html': text, 'text/plain': 'plain'}, metadata={})
MARKDOWN = dict(cell_type='markdown', source=['# T'])


def test_filter_takes_out_directives_and_nothing_else():
    out = filtered(code('#| default_exp core'), code('#| export', 'x = 1'), code('#| hide', 'y = 2'), code('#| label: fig-a', '#| fig-cap: "b"', 'plot()'), MARKDOWN)
    assert sources(out) == ['x = 1\n', '#| label: fig-a\n#| fig-cap: "b"\nplot()\n', '# T']


def test_filter_joins_the_silent_cells_of_a_chapter():
    out = filtered(code('n = 1', tags=['parameters']), code('#| export', 'x = 1'), code('#| hide', 'test()'), code('#| label: fig-a', 'plot()', outputs=[html('<p>a</p>')]),
                   code('y = 1'), MARKDOWN, code('#| eval: false', 'z = 1'), code('z'))
    assert sources(out) == ['#| label: fig-a\nn = 1\n\nx = 1\n\nplot()\n', 'y = 1\n', '# T', '#| eval: false\nz = 1\n', 'z\n']
    assert len(filtered(code('x = 1'), code('y = 1'))) == 2, 'a notebook without parameters is the library, where every cell has its place'


def test_filter_shows_tables_without_a_network():
    head = '<thead><tr style="text-align: right;"><th>{}</th><th>auc</th></tr><tr><th>run</th><th></th></tr></thead>'
    (c,) = filtered(code('t', outputs=[html('<style>p {}</style>'), html(f'<style scoped>a</style><table border="1" class="dataframe">{head.format("metric")}</table>')]))
    assert [o['data']['text/markdown'] for o in c['outputs']] == ['```{=html}\n<table><thead><tr><th>run</th><th>auc</th></tr></thead></table>\n```\n']
    two = '<thead><tr><th></th><th colspan="2">auc</th></tr><tr><th></th><th>a</th><th>b</th></tr></thead>'
    assert two in nbdev_filter.show_html(two), 'columns of two levels stay'
    widget = html('<script>1</script>')
    assert filtered(code('w', outputs=[widget]))[0]['outputs'] == [widget]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_filter_leaves_no_directive(path):
    text = subprocess.run([sys.executable, ROOT/'nbdev_filter.py'], input=path.read_text(), capture_output=True, text=True, check=True).stdout
    cells = json.loads(text)['cells']
    assert not any(re.search(r'^#\|\s*(export|hide|default_exp)\b', ''.join(c['source']), re.M) for c in cells)
