"What a visitor reads: README, COMMANDS and RESULTS say what is so."
import re
import shlex

import papermill as pm
import pytest
from conftest import ROOT

from tokencompose.reporting.pages import readme_table, results_page, with_table

PAGES = ('README.md', 'COMMANDS.md', 'RESULTS.md')


def text_of(page): return (ROOT/page).read_text(encoding='utf-8')


def commands(page):
    "Shell commands of a page: lines of its sh blocks, and what stands between backticks."
    text = text_of(page)
    lines = [line.split('#')[0] for block in re.findall(r'```sh\n(.*?)```', text, re.S) for line in block.replace('\\\n', ' ').split('\n')]
    return [line.strip() for line in [*lines, *re.findall(r'`([^`\n]+)`', re.sub(r'```.*?```', '', text, flags=re.S))]]


@pytest.mark.parametrize('page', PAGES)
def test_papermill_commands_fit_their_notebooks(page):
    for command in commands(page):
        for part in re.split(r';| do ', command):
            words = shlex.split(part.strip()) if part.strip().startswith('papermill ') else []
            if not words or words[1].startswith('--'): continue
            notebook = words[1].replace('$step', '01_select_captions')
            known = set(pm.inspect_notebook(str(ROOT/notebook)))
            given = [words[i + 1] for i, word in enumerate(words) if word == '-p']
            assert set(given) <= known, (command, set(given) - known)


@pytest.mark.parametrize('page', PAGES)
def test_make_commands_exist(page):
    targets = re.findall(r'^([a-z-]+):', (ROOT/'Makefile').read_text(), re.M)
    for command in commands(page):
        if command.startswith('make '): assert command.split()[1] in targets or '=' in command.split()[1], command


@pytest.mark.parametrize('page', PAGES)
def test_links_of_pages_lead_somewhere(page):
    linked = [target.split('#')[0] for target in re.findall(r'\]\(([^)\s]+)\)', text_of(page)) if not re.match(r'https?:|#', target)]
    assert linked and not [target for target in linked if not (ROOT/target).exists()]


def test_the_readme_is_one_page():
    text = text_of('README.md')
    assert len(text.split()) < 900
    typed = re.sub(r'<!--.*?-->.*?<!--.*?-->', '', text, flags=re.S)
    assert not re.findall(r'\[[−-]?\d+\.?\d*, [−-]?\d+\.?\d*\]', typed), 'measured numbers are generated'


def test_the_python_of_the_readme_runs():
    code, = re.findall(r'```python\n(.*?)```', text_of('README.md'), re.S)
    names = {}
    exec(compile(code, 'README.md', 'exec'), names)
    assert names['picture'].size == (64, 64) and list(names['maps']) == ['cat', 'pizza', 'car']
    assert all(map_.shape == (16, 16) and map_.min() >= 0 and map_.max() <= 1 for map_ in names['maps'].values())


def numbers_apart(text):
    "The text without its numbers, and the numbers: another processor may round the last digit the other way."
    number = r'\d+(?:\.\d+)?'
    return re.sub(r'[ :-]+', ' ', re.sub(number, '0', text)), re.findall(number, text)


def test_results_are_what_the_records_say():
    for page, made in (('RESULTS.md', results_page()), ('README.md', with_table(text_of('README.md'), readme_table()))):
        (words, ours), (words_now, now) = numbers_apart(text_of(page)), numbers_apart(made)
        assert words == words_now, f'{page}: run make results'
        digits = [len(a.partition('.')[2]) for a in ours]
        assert not [(a, b) for a, b, n in zip(ours, now, digits, strict=True) if abs(float(a) - float(b)) > 1.5*10**-n], f'{page}: run make results'
