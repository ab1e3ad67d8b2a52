"The built-in notes and the question set: what the index and the evaluation rely on."
import json, re
from collections import Counter
from statistics import median

import pytest, yaml

from conftest import ROOT

FOLDER = ROOT/'skincancer'/'education'
SECTIONS = ['What it is', 'How it looks', 'Risk factors', 'How it is confirmed', 'What usually follows', 'When to see a doctor']
CONDITIONS = ['melanoma', 'nevus', 'basal_cell_carcinoma', 'squamous_cell_carcinoma', 'actinic_keratosis', 'seborrheic_keratosis',
              'benign_keratosis', 'dermatofibroma', 'vascular_lesion', 'general']
FILES = sorted((FOLDER/'notes').glob('*.md'))


def sentences(text): return re.split(r'(?<=[.!?])\s+', text.strip())


def read(path):
    "Front matter and `{section: [(text, keys)]}` of one file, read without the package's own reader."
    start, front, body = path.read_text(encoding='utf-8').split('---\n', 2)
    assert start == '', f'{path.name} must open with ---'
    sections = {}
    for part in re.split(r'^## ', body, flags=re.M)[1:]:
        heading, text = part.split('\n', 1)
        assert heading not in sections, f'{path.name}: {heading!r} twice'
        sections[heading] = []
        for paragraph in re.split(r'\n\s*\n', text.strip()):
            m = re.fullmatch(r'([^\n]+?) \[(@[\w.-]+(?:; @[\w.-]+)*)\]', paragraph)
            assert m, f'{path.name}, {heading}: no keys at the end of {paragraph[:60]!r}'
            sections[heading].append((m[1], [k.strip().lstrip('@') for k in m[2].split(';')]))
    return yaml.safe_load(front), sections


NOTES = {p.stem: read(p) for p in FILES}
PASSAGES = {f'{c}/{h.lower().replace(" ", "_")}/{i}': (text, keys) for c, (_, sections) in NOTES.items()
            for h, passages in sections.items() for i, (text, keys) in enumerate(passages, 1)}
QUESTIONS = [json.loads(l) for l in (FOLDER/'questions.jsonl').read_text(encoding='utf-8').splitlines()]


def test_one_file_per_condition():
    assert sorted(NOTES) == sorted(CONDITIONS)
    for name, (front, _) in NOTES.items(): assert front['condition'] == name and front['title'] and isinstance(front['labels'], dict)


@pytest.mark.parametrize('name', CONDITIONS)
def test_every_section_is_there(name):
    sections = NOTES[name][1]
    assert list(sections) == SECTIONS
    for h, passages in sections.items(): assert 2 <= len(passages) <= (4 if name != 'general' else 8), (h, len(passages))


@pytest.mark.parametrize('name', CONDITIONS)
def test_references_exist_and_are_used(name):
    front, sections = NOTES[name]
    used = {k for passages in sections.values() for _, keys in passages for k in keys}
    assert used == set(front['references'])
    for key, ref in front['references'].items():
        assert set(ref) == {'title', 'publisher', 'url'} and all(ref.values()), key
        assert re.match(r'https://[^\s]+$', ref['url']), key


def test_a_key_means_the_same_everywhere():
    seen = {}
    for front, _ in NOTES.values():
        for key, ref in front['references'].items(): assert seen.setdefault(key, ref) == ref, key


def test_passages_are_short_and_their_sentences_stand_alone():
    "An extractive summary lifts single sentences, so none may lean on the one before."
    for id, (text, _) in PASSAGES.items():
        assert len(text.split()) <= 90 and 2 <= len(sentences(text)) <= 4, id
        for s in sentences(text):
            assert not re.match(r'(It|They|This|These|Its|Their|He|She|So does|The same)\b', s), (id, s)
            assert s[0].isupper() and s[-1] == '.', (id, s)
    assert not [s for s, n in Counter(s for text, _ in PASSAGES.values() for s in sentences(text)).items() if n > 1]


def test_no_doses():
    for id, (text, _) in PASSAGES.items(): assert not re.search(r'\b\d+\s*(mg|milligrams?|g|ml|Gy|grays?|J/cm2)\b|\bSPF\b', text), id


def test_reading_level():
    "Flesch-Kincaid grade, syllables by hyphenation."
    dic = pytest.importorskip('pyphen').Pyphen(lang='en_US')
    def grade(text):
        words = re.findall(r"[A-Za-z']+", text)
        return .39*len(words)/len(sentences(text)) + 11.8*sum(dic.inserted(w).count('-') + 1 for w in words)/len(words) - 15.59
    assert median(grade(text) for text, _ in PASSAGES.values()) <= 9


def test_labels_cover_the_cohorts():
    from skincancer.data.cohorts import COHORTS
    for cohort in ('ham10000', 'pad_ufes_20', 'simulated'):
        labels = [l for front, _ in NOTES.values() for l in front['labels'].get(cohort, [])]
        assert sorted(labels) == sorted(COHORTS[cohort].classes)


def test_questions():
    assert len({q['id'] for q in QUESTIONS}) == len(QUESTIONS) == len({q['question'] for q in QUESTIONS})
    for q in QUESTIONS:
        assert set(q) == {'id', 'question', 'condition', 'answers', 'kind', 'split'} and q['split'] in ('development', 'test'), q['id']
        assert (q['condition'] is None) == (not q['answers']) == (q['kind'] in ('outside', 'near miss', 'injection')), q['id']
        assert q['condition'] is None or q['condition'] in CONDITIONS
        assert len(set(q['answers'])) == len(q['answers']) and set(q['answers']) <= set(PASSAGES), q['id']


def test_question_counts():
    answerable, outside = [q for q in QUESTIONS if q['answers']], [q for q in QUESTIONS if not q['answers']]
    assert len(answerable) >= 100 and len(outside) >= 30
    assert {q['condition'] for q in answerable} == set(CONDITIONS)
    assert {a.split('/')[1] for q in answerable for a in q['answers']} == {s.lower().replace(' ', '_') for s in SECTIONS}
    for qs in (answerable, outside): assert abs(sum(q['split'] == 'development' for q in qs)/len(qs) - .6) < .05
    assert sum(q['kind'] == 'hard' for q in answerable)/len(answerable) > 1/3
