"The report without Quarto: what it lists exists, what it cites and refers to is there, notebooks were executed in order, and no number is typed or old."
import json, re
from functools import cache

import nbformat, pandas as pd, pytest, yaml

import nbdev_filter
from conftest import ROOT, book_files
from skincancer.core import file_sha256
from skincancer.report.build import check_executed, read_lock, read_report, stale
from skincancer.report.folds import FUSED
from skincancer.report.numbers import ABSENT, labelled_tables, variables, write_generated
from skincancer.training.sweep import printed_id

ENTRIES = read_report()
BOOK = yaml.safe_load((ROOT/'_quarto.yml').read_text())
LISTED = list(book_files(BOOK['book']['chapters']))
PAPER = (ROOT/'index.qmd').read_text()
ids = lambda e: e.id


@cache
def cells(path): return nbformat.read(path, 4).cells

def labels_of(source): return re.findall(r'^#\| label: ([\w-]+)\s*$', source, re.M)

def pieces():
    "Every document of the book as (name, text for readers, source of code cells)."
    yield 'index.qmd', PAPER, ''
    for p in LISTED:
        if p.endswith('.ipynb') and (ROOT/p).is_file():
            c = cells(ROOT/p)
            yield p, '\n\n'.join(o.source for o in c if o.cell_type == 'markdown'), '\n\n'.join(o.source for o in c if o.cell_type == 'code')

PIECES = list(pieces())
DEFINED = [l for _, text, code in PIECES for l in [*labels_of(code), *re.findall(r'\{#((?:fig|tbl|sec|eq)-[\w-]+)', text)]]
prose = lambda text: re.sub(r'```.*?```|`[^`]*`', '', text, flags=re.S)


def test_quarto_keys():
    assert BOOK['project']['type'] == 'book' and BOOK['ipynb-filters'] == ['nbdev_filter.py'] and BOOK['bibliography'] == 'references.bib'
    assert BOOK['execute']['enabled'] is False, 'Quarto shows stored outputs'
    assert BOOK['format']['html']['html-math-method'] == 'mathml', 'mathematics without a network'
    paper = yaml.safe_load((ROOT/'_quarto-paper.yml').read_text())
    assert BOOK['format']['html']['number-offset'] == 1 and paper['shift-heading-level-by'] == -1, 'the paper is chapter 1'
    assert not re.search('^# ', re.sub('```.*?```', '', PAPER, flags=re.S), re.M), 'its sections are of the second level, so that no figure has the number of one in another chapter'
    assert paper['format']['typst']['citeproc'] is True, 'one list of references, where the paper puts it'
    assert BOOK['format']['html']['number-depth'] == 3 and 'max-height' in BOOK['format']['html']['include-in-header']['text'], 'headings of a model card and long outputs'
    assert yaml.safe_load((ROOT/'nbs'/'lib'/'_metadata.yml').read_text())['format']['html']['code-fold'] is False, 'in the library the code is the text'
    assert all('tbl-colwidths' in a for a in re.findall(r'\{#tbl-[^}]*\}', PAPER)), 'equal columns break the words of the paper on a page'
    assert paper['project'] == dict(type='default', render=['index.qmd'], **{'output-dir': '_paper'}) and {'docx', 'typst'} <= set(paper['format'])


def test_book_lists_the_report_in_its_order():
    assert [p for p in LISTED if not p.startswith('nbs/')] == ['index.qmd', *(f'report/{e.id}.ipynb' for e in ENTRIES)]
    assert {e.chapter for e in ENTRIES} == {p.stem for p in (ROOT/'nbs').glob('*.ipynb')}, 'every chapter is in the report'
    assert {p.name for p in (ROOT/'report').glob('*.ipynb')} <= {e.path.name for e in ENTRIES}, 'a notebook that no entry makes'


def test_no_letter_of_an_appendix_is_a_bracket(): assert len(list(book_files(BOOK['book'].get('appendices', [])))) <= 26, 'after Z Quarto goes on with [ and breaks its own Markdown'


@pytest.mark.parametrize('path', LISTED[1:])
def test_page_is_quiet_and_needs_no_network(path):
    "As the filter hands it to Quarto: any text/html would load scripts from the network; nothing of a terminal is shown."
    shown = nbdev_filter.filter_notebook(json.loads((ROOT/path).read_text()))['cells']
    for o in (o for c in shown if c['cell_type'] == 'code' for o in c['outputs']):
        assert o['output_type'] != 'error' and o.get('name') != 'stderr' and not {'text/html', 'application/javascript'} & set(o.get('data', {}))
        text = nbdev_filter.text(o.get('text')) or ''.join(nbdev_filter.text(v) for k, v in o['data'].items() if k.startswith('text/'))
        assert not re.search(r'\x1b|\d(it/s|s/it)\]|%\|[█▏ ]|<progress|(src|href)=.https?:|<style', text), text[:200]


def test_every_picture_has_alternative_text():
    for p in LISTED[1:]:
        for c in cells(ROOT/p):
            if c.cell_type != 'code' or not any('image/png' in o.get('data', {}) for o in c.outputs): continue
            assert re.search(r'^#\| fig-alt: .{20}', c.source, re.M), f'{p}: {c.source[:80]}'


def test_no_picture_of_a_patient_can_come_out():
    "The one chapter that draws images stays on the simulated cohort."
    assert {e.dataset for e in ENTRIES if e.chapter == '06_interpretability'} == {'simulated'}


def test_chapters_that_train_publish_what_the_book_shows():
    "One record per chapter and data set, and it is the one that the page names."
    assert {e.chapter for e in ENTRIES if e.publish} == {'02_baseline', '03_multimodal'}
    for e in (e for e in ENTRIES if e.publish):
        assert [p.name for p in (ROOT/'results').glob(f'{e.chapter[:2]}-{e.dataset}-*')] == [printed_id(nbformat.read(e.path, 4), e.id)]


@pytest.mark.parametrize('entry', ENTRIES, ids=ids)
def test_notebook_was_executed_in_order(entry):
    nb = nbformat.read(entry.path, 4)
    nbformat.validate(nb)
    assert check_executed(entry.path) == []
    assert set(nb.metadata) == {'kernelspec'} and not any('papermill' in c.metadata for c in nb.cells)
    assert nb.cells[0].source.split('\n')[0].endswith((f': {entry.data}' if entry.data else '') + f' {{#{entry.anchor}}}')


@pytest.mark.parametrize('entry', ENTRIES, ids=ids)
def test_notebook_names_no_machine_and_no_patient(entry):
    text = entry.path.read_text()
    assert not re.search(r'/(root|home|work|tmp)/\w', text), 'a path of one machine'
    assert not re.search(r'<[\w.]+ (object )?at 0x', text), 'an address'
    outputs = str([c.outputs for c in cells(entry.path) if c.cell_type == 'code'])
    assert not re.search(r'ISIC_\d{5,}|PAT_\d+_\d+', outputs), 'an image of a patient by its name'


@pytest.mark.parametrize('entry', ENTRIES, ids=ids)
def test_notebook_is_current(entry):
    "Cells, parameters and records are those it was made from. Changed code alone is left to `skincancer_report --check`."
    assert set(stale(entry, read_lock())) <= {'code'}


def test_labels_are_unique(): assert sorted(set(DEFINED)) == sorted(DEFINED)


def test_every_figure_has_caption_and_alternative_text():
    for p in LISTED[1:]:
        for c in cells(ROOT/p):
            if c.cell_type == 'code' and any(l.startswith('fig-') for l in labels_of(c.source)):
                assert re.search(r'^#\| fig-cap: .{20}', c.source, re.M) and re.search(r'^#\| fig-alt: .{20}', c.source, re.M), f'{p}: {labels_of(c.source)}'
    for caption, file, attributes in re.findall(r'!\[(.*?)\]\((.*?)\)\{(.*?)\}', PAPER):
        assert len(caption) > 40 and re.search(r'#fig-[\w-]+', attributes) and re.search(r'fig-alt=".{20,}"', attributes), file
    assert PAPER.count('![') == len(re.findall(r'!\[.*?\]\(.*?\)\{.*?\}', PAPER))


def test_every_figure_of_the_paper_exists_and_has_one_producer():
    "The chapter that saves it, run with `save_figures` for that data set."
    producer = dict(ablation='04_ablation', calibration='05_calibration_fairness')
    for file in re.findall(r'!\[.*?\]\((.*?)\)', PAPER):
        assert (ROOT/file).is_file(), file
        stem = file.removeprefix('figures/').removesuffix('.svg')
        if stem.startswith('leak-table'): made = [e for e in ENTRIES if e.chapter == '04_ablation']
        else: made = [e for e in ENTRIES if stem.startswith(f'{e.dataset}-') and e.chapter == producer.get(stem.split('-')[1], '01_eda')]
        assert made and all(e.parameters.get('save_figures') for e in made), file


def test_cross_references_resolve():
    for name, text, _ in PIECES: assert set(re.findall(r'@((?:fig|tbl|sec|eq)-[\w-]+)', prose(text))) <= set(DEFINED), name


def test_citations_resolve():
    bib = (ROOT/'references.bib').read_text()
    entries = dict(re.findall(r'^@\w+\{([^,]+),(.*?)^\}', bib, re.M | re.S))
    cited = {k for _, text, _ in PIECES for k in re.findall(r'(?<![\w.])@([a-z]+\d{4}\w*)', prose(text))}
    assert cited <= set(entries) and set(entries) <= cited, cited ^ set(entries)
    for k, e in entries.items(): assert re.search(r'doi\s*=\s*\{10\.\d{4,}/\S+\}', e), k


def test_links_into_the_book_lead_somewhere():
    "Those of the model cards; sections of library notebooks are checked where the card is written."
    for e in ENTRIES:
        shown = [o.data.get('text/markdown', '') for c in cells(e.path) if c.cell_type == 'code' for o in c.outputs if 'data' in o]
        for file, anchor in re.findall(r'\]\(/([^)#]+)(?:#([^)]*))?\)', '\n'.join(shown)):
            assert file in LISTED if file.endswith(('.ipynb', '.qmd')) else (ROOT/file).is_file(), f'{e.id}: {file}'
            if re.match('(fig|tbl|sec)-', anchor): assert anchor in DEFINED, f'{e.id}: {file}#{anchor}'


def test_included_files_exist():
    for name, text, _ in PIECES:
        for f in re.findall(r'\{\{< include (\S+) >\}\}', text): assert (ROOT/f).is_file(), f'{name}: {f}'


def test_variables_and_tables_are_what_the_records_say(): assert write_generated(check=True) == []


def test_tables_with_labels_belong_to_their_sweeps():
    lock = read_lock()
    for name, (sweep, *_) in labelled_tables().items():
        then = dict(sweep=file_sha256(ROOT/'results'/'sweeps'/f'{sweep}.csv')[:12], file=file_sha256(ROOT/'results'/f'{name}.csv')[:12])
        assert lock.get(name) == then, name


def test_every_quoted_variable_exists():
    found = variables()
    for path in re.findall(r'\{\{< var (\S+) >\}\}', PAPER):
        v = found
        for k in path.split('.'): v = v[k]
        assert isinstance(v, str) and v, path
        if not path.startswith('ham10000'): assert v != ABSENT, path


def test_no_measured_number_is_typed():
    "Decimals and large counts come from `_variables.yml`; what is left are names, years and settings."
    text = re.sub(r'\{\{<.*?>\}\}|doi:\S+|\]\(.*?\)|CC BY(-NC)? 4\.0|License 2\.0', '', PAPER)
    assert not re.findall(r'\d+[.,]\d+', text)


def test_what_the_paper_says_in_words_is_so():
    "Sentences that draw a conclusion from the numbers; a new run that contradicts them must change them."
    def p(data, run, against, metric):
        t = pd.read_csv(ROOT/'results'/f'differences-{data}.csv').set_index(['run', 'against', 'metric']).loc[(run, against, metric)]
        return t.difference, t.p_holm
    # PAD-UFES-20: metadata raises the macro AUC on each seed, the balanced accuracy not for certain; no fusion beats concatenation, MetaNet is worse
    for a, b in (('image', 'late'), ('image_seed_1', 'seed_1'), ('image_seed_2', 'seed_2')):
        d, q = p('pad_ufes_20', a, b, 'macro_auc'); assert d < 0 and q < .05
        assert p('pad_ufes_20', a, b, 'balanced_accuracy')[1] > .05
    for f in ('film', 'cross_attention', 'metablock', 'metanet', 'gated'):
        for m in ('balanced_accuracy', 'macro_auc'): d, q = p('pad_ufes_20', f, 'late', m); assert d < 0 or q > .05
    d, q = p('pad_ufes_20', 'metanet', 'late', 'macro_auc'); assert d < 0 and q < .05
    # simulated: the gain is there, late fusion loses it with permuted metadata, FiLM and MetaBlock fall below the image
    d, q = p('simulated', 'image', 'late', 'balanced_accuracy'); assert d < 0 and q < .05
    assert p('simulated', 'late_permuted', 'image', 'balanced_accuracy')[1] > .05
    for f in ('film', 'metablock'): d, q = p('simulated', f'{f}_permuted', 'image', 'balanced_accuracy'); assert d < 0 and q < .05
    # over folds: metadata adds to the image on both data sets; on PAD-UFES-20 no fusion is above the metadata alone
    def over_folds(data, model, reference, metric='balanced_accuracy', study='folds'):
        t = pd.read_csv(ROOT/'results'/f'{study}-{data}.csv').set_index(['model', 'reference', 'metric']).loc[(model, reference, metric)]
        return t.difference, t.p_holm
    for data in ('ham10000', 'pad_ufes_20'):
        for m in ('balanced_accuracy', 'macro_auc'): d, q = over_folds(data, 'late', 'image', m); assert d > 0 and q < .05
    for m in ('balanced_accuracy', 'macro_auc'): d, q = over_folds('ham10000', 'late', 'image', m, 'folds-trained'); assert d > 0 and q < .05
    single = pd.read_csv(ROOT/'results'/'sweeps'/'folds_trained_ham10000.csv').pivot(index='fold', columns='fusion', values='balanced_accuracy')
    assert (single.image > single.late).sum() == 1
    for f in FUSED: d, q = over_folds('pad_ufes_20', f, 'metadata'); assert d < 0 or q > .05
    # the floor: cleared on HAM10000, not on PAD-UFES-20
    v = {k: {m: [float(x) for x in re.findall(r'-?\d+\.\d+', o[m]['balanced_accuracy'])] for m in ('image', 'late', 'floor')} for k, o in variables().items()}
    assert min(v['ham10000'][m][1] for m in ('image', 'late')) > v['ham10000']['floor'][2]
    assert v['pad_ufes_20']['late'][0] < v['pad_ufes_20']['floor'][0]
