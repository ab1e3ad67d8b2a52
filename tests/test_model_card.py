"Model cards, datasheets and checklists of published records: complete, without a network, and no link into nothing."
import json, os, re, shutil, socket, subprocess, sys

import nbformat, pytest

from conftest import ROOT
from skincancer.data.cohorts import load_cohort
from skincancer.report.checklists import ANSWERS, CHECKLISTS, check_checklist, met, not_met
from skincancer.report.model_card import REQUIRED_DATA, REQUIRED_PARTS, SECTIONS, SHEET_SECTIONS, check_card, checklist_facts, fill_checklists, find_record, gather, sections_of, write_cards

LICENCE = dict(simulated='apache-2.0', ham10000='cc-by-nc-4.0', pad_ufes_20='cc-by-4.0')


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError('the network was asked for')
    for name in ('connect', 'connect_ex'): monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)


@pytest.fixture(scope='module')
def evidence(request):
    "One per published record of late fusion; only the real ones need the data."
    seen, data = {}, lambda: request.getfixturevalue('real_data')
    def of(name):
        if name not in seen: seen[name] = gather(find_record(name), None if name == 'simulated' else load_cohort(name, data(), verbose=False), n_boot=100)
        return seen[name]
    return of


@pytest.mark.parametrize('name', LICENCE)
def test_a_card_of_a_published_record_is_complete(name, evidence, tmp_path, no_network):
    e = evidence(name)
    written = write_cards(e.run, tmp_path, evidence=e)
    card = check_card(written['card'])
    assert all(card.data.get(k) for k in REQUIRED_DATA) and card.data.license == LICENCE[name] and card.data.datasets == [name]
    said = {r.metric_type: r for r in card.data.eval_results}
    s = e.metrics['test']['scores']['balanced_accuracy']
    assert said['balanced_accuracy'].metric_value == round(s['estimate'], 4) and said['balanced_accuracy'].metric_args['n'] == e.metrics['test']['images']
    assert not any(r.verified for r in card.data.eval_results)
    parts = sections_of(card.text)
    assert {*SECTIONS, *REQUIRED_PARTS} <= set(parts) and 'n=' in parts['Subgroups'] and 'not measured' in parts['Training time and energy']
    assert f'{e.run.info["seconds"]:,} seconds' in parts['Training time and energy']
    assert list(sections_of(written[f'datasheet-{name}'].read_text()))[1:] == list(SHEET_SECTIONS)
    assert {p.name for p in tmp_path.iterdir()} == {'README.md', f'datasheet-{name}.md', *(f'checklist-{c}.md' for c in CHECKLISTS)}
    text = ''.join(p.read_text() for p in written.values())
    assert not re.search(r'/(root|home|work|tmp)/\w', text) and ('SIMULATED' in text) == (name == 'simulated')


@pytest.mark.parametrize('name', LICENCE)
def test_checklists_leave_nothing_open(name, evidence):
    filled = fill_checklists(evidence(name))
    assert {n: len(f) for n, f in filled.items()} == {'tripod-ai': 52, 'claim-2024': 44, 'clear-derm': 25}
    for f in filled.values():
        assert set(f.status) == {'met', 'not met'} and (f.answer.str.len() > 10).all()
        assert f[f.status == 'met'].answer.str.contains(r'\]\(|\.json: ').all()


def test_answers_follow_the_data(evidence):
    status = lambda name, item: fill_checklists(evidence(name))['clear-derm'].set_index('item').status[item]
    assert status('ham10000', '8') == 'not met' and status('pad_ufes_20', '8') == 'met'      # skin tone
    assert status('simulated', '18') == 'not met' and status('ham10000', '18') == 'met'      # histology
    assert 'V-VI 11' in SECTIONS['Factors'](evidence('pad_ufes_20'))
    said = SECTIONS['Training data'](evidence('ham10000'))
    assert ('at hand: 600 x 450' in said) != ('those of a reduced copy' in said)
    assert 'no patient id' in SECTIONS['Caveats and recommendations'](evidence('ham10000'))
    assert 'worse than logistic regression' in SECTIONS['Caveats and recommendations'](evidence('pad_ufes_20'))
    assert 'not estimable' in SECTIONS['Quantitative analyses'](evidence('pad_ufes_20'))


@pytest.fixture
def project(tmp_path):
    "A copy of what links can lead to."
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs', ignore=shutil.ignore_patterns('.*', '_*'))
    for f in ('index.qmd', 'README.md', 'LICENSE', 'requirements.lock'): shutil.copy(ROOT/f, tmp_path/f)
    return tmp_path


def test_a_renamed_heading_fails_the_build(project, evidence, tmp_path):
    e = evidence('simulated')
    fill_checklists(e, root=project)
    path = project/'nbs'/'03_multimodal.ipynb'
    path.write_text(path.read_text().replace('## The split', '## Our split'))
    with pytest.raises(ValueError, match=r"03_multimodal.ipynb has no section or figure 'The split'"): fill_checklists(e, root=project)
    with pytest.raises(ValueError, match='The split'): write_cards(e.run, tmp_path/'cards', evidence=e, root=project)
    assert not (tmp_path/'cards').exists()


def test_a_missing_file_or_notebook_fails_the_build(project, evidence):
    (project/'LICENSE').unlink()
    with pytest.raises(ValueError, match='no file LICENSE'): fill_checklists(evidence('simulated'), root=project)
    (project/'nbs'/'01_eda.ipynb').unlink()
    with pytest.raises(ValueError, match='no notebook 01_eda'): fill_checklists(evidence('simulated'), root=project)


@pytest.mark.parametrize('answers, message', [
    ({k: v for k, v in ANSWERS.items() if k != 'fairness'}, r'item 14 .* is required and has no answer'),
    (ANSWERS | dict(fairness=not_met('')), r'item 14 .* is not met, and no reason is given'),
    (ANSWERS | dict(fairness=met('Yes.')), r'item 14 .* is answered without a link'),
    (ANSWERS | dict(fairness=met('Yes.', '34_evaluation.fairness#Nothing')), r"item 14 .* leads nowhere: .* 'Nothing'"),
    (ANSWERS | dict(fairness=met('Yes.', '01_eda#fig-nothing')), r"leads nowhere: .* 'fig-nothing'"),
    (ANSWERS | dict(fairness=met('Yes.', 'metrics:test.scores.fairness.estimate')), r'leads nowhere: the record has no metrics.json: test.scores.fairness.estimate'),
])
def test_a_required_item_needs_an_answer_or_a_reason(answers, message, evidence):
    with pytest.raises(ValueError, match=message): check_checklist(CHECKLISTS['tripod-ai'], checklist_facts(evidence('simulated')), answers)


def test_every_link_is_looked_up_even_if_no_run_needs_it(evidence):
    "An answer that holds for other runs only must not rot unseen."
    facts = checklist_facts(evidence('simulated'))
    facts = dict(facts, **{a.needs: facts.get(a.needs) or 'yes' for a in ANSWERS.values() if a.needs})
    for c in CHECKLISTS.values(): check_checklist(c, facts)


def test_labels_are_needed_and_must_be_those_of_the_run(real_data):
    run = find_record('pad_ufes_20')
    with pytest.raises(ValueError, match='pass cohort=load_cohort'): gather(run)
    with pytest.raises(ValueError, match='was run on pad_ufes_20, not on ham10000'): gather(run, load_cohort('ham10000', real_data, verbose=False))
    cohort = load_cohort('pad_ufes_20', real_data, verbose=False)
    cohort.table['label'] = cohort.table.label.replace(dict(BCC='ACK', ACK='BCC'))
    with pytest.raises(ValueError, match='labels differ'): gather(run, cohort, n_boot=100)


def papermill(tmp_path, **params):
    args = [o for k, v in params.items() for o in ('-p', k, str(v))]
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | dict(PYTHONWARNINGS='ignore')
    out = tmp_path/'out.ipynb'
    job = subprocess.run([sys.executable, '-m', 'papermill', str(ROOT/'nbs/07_model_card.ipynb'), str(out), '-k', 'python3', '--no-progress-bar', *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    return job, out


def test_the_chapter_on_real_data(tmp_path, real_data):
    job, out = papermill(tmp_path, dataset='pad_ufes_20', data_dir=real_data, out=tmp_path/'cards', n_boot=100)
    assert job.returncode == 0, job.stderr[-3000:]
    assert check_card(tmp_path/'cards'/'README.md').data.datasets == ['pad_ufes_20']
    shown = ''.join(json.dumps(o) for c in nbformat.read(out, 4).cells for o in c.get('outputs', []))
    assert 'Out-of-scope use' in shown and 'CLEAR Derm' in shown and 'not estimable' in shown


@pytest.mark.parametrize('params, message', [
    (dict(dataset='siim_isic_2020'), "No record of siim_isic_2020 with fusion='late'"),
    (dict(rnu='x'), "Did you mean 'run'?"),
])
def test_the_chapter_names_what_is_wrong(tmp_path, params, message):
    job, _ = papermill(tmp_path, out=tmp_path/'cards', **params)
    assert job.returncode != 0 and message in job.stderr + job.stdout
    assert not (tmp_path/'cards').exists()
