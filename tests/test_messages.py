"""What is said when an input is wrong: every text that is raised, in the package and in the notebooks, is read here."""
import ast
import re

import nbformat
import pytest
from conftest import ROOT

SAID = r'\b(allowed|did you mean|expected|known are|must|needs?|not one of|should|wanted)\b'
VERBS = ('add|annotate|apply|ask|call|check|choose|close|compare|convert|copy|correct|delete|draw|encode|fetch|give|install|judge|keep|leave|load|lower|make|move|name|pack|pad|pass|pip install|point|put|'
         'rename|repair|replace|run|save|say|score|set|start|take|train|unset|use|wait|write')
REMEDY = re.compile(rf'{SAID}|(^|[:;,.(] |\b(or|and|so|then|first) )`?({VERBS})\b', re.I)  # an imperative begins a clause: "the class name" asks for nothing
HANDED_ON = re.compile(r'\{(self\.)?(remedy|hint|advice|wanted|problem|reason|error|holds|_one_file\(folder\)|_meant\(.*\)|_closest\(.*\))\}')


def said(node, known) -> str:
    "A text with its placeholders as {expressions}; constants of the module are put in."
    if isinstance(node, ast.Constant): return str(node.value)
    if isinstance(node, ast.JoinedStr): return ''.join(said(part, known) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add): return said(node.left, known) + said(node.right, known)
    inner = node.value if isinstance(node, ast.FormattedValue) else node
    if isinstance(inner, ast.Name) and inner.id in known: return known[inner.id]
    return f'{{{ast.unparse(inner)}}}'


def constants(tree) -> dict:
    "Texts that a module gives a name in capitals."
    named = [(node.targets[0], node.value) for node in tree.body if isinstance(node, ast.Assign)]
    return {target.id: value.value for target, value in named
            if isinstance(target, ast.Name) and target.id.isupper() and isinstance(value, ast.Constant) and isinstance(value.value, str)}


def raised(tree) -> list:
    "(line, text) of what is raised; exceptions with a leading underscore are caught by the module itself."
    found, known = [], constants(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Raise) or node.exc is None: continue
        call = isinstance(node.exc, ast.Call)
        if re.match(r'_[A-Z]', ast.unparse(node.exc.func if call else node.exc)): continue
        found.append((node.lineno, said(node.exc.args[0], known) if call and node.exc.args else ''))
    return found


def problems(tree) -> list:
    "(line, text) of what functions named *problem say is wrong; others put the place before it."
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.endswith('problem')]
    returned = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.Return)]
    return [(node.lineno, said(node.value, {})) for node in returned if isinstance(node.value, (ast.Constant, ast.JoinedStr)) and said(node.value, {})]


def in_package() -> list:
    "(module, line, text) of everything that the package raises."
    paths = sorted((ROOT/'tokencompose').rglob('*.py'))
    return [(path.relative_to(ROOT/'tokencompose').with_suffix('').as_posix(), *found) for path in paths for found in raised(ast.parse(path.read_text()))]


def in_notebooks() -> list:
    "(notebook, cell, text) of everything that notebooks raise which are run by papermill."
    found = []
    for path in sorted([*ROOT.glob('nbs/**/*.ipynb'), *ROOT.glob('data_prep/*.ipynb'), *ROOT.glob('paper_figures/*.ipynb')]):
        if re.match(r'\d\d_', path.name) and path.is_relative_to(ROOT/'nbs'): continue
        for number, cell in enumerate(nbformat.read(path, 4).cells):
            code = '\n'.join(line for line in cell.source.split('\n') if not re.match(r'\s*[%!]', line)) if cell.cell_type == 'code' else ''
            found += [(path.relative_to(ROOT).as_posix(), number, text) for _, text in raised(ast.parse(code))]
    return found


def is_part(text) -> bool:
    "Whether a text only goes into another one: no sentence of its own."
    inner = re.match(r"[a-z]|\{why\}|\{len\(stack\) - 1\}", text) and not text.endswith(".")
    return bool(inner) or bool(re.fullmatch(r"\{[^{}]*\}.{0,2}\{[^{}]*\}", text))


def problem(text) -> str:
    "What is wrong with a message; empty when nothing is."
    if not text: return 'says nothing'
    if is_part(text): return ''
    if not re.search(r'[.})]$', text): return 'is no sentence'
    if not re.search('[{`]', text): return 'does not name what is wrong'
    return '' if REMEDY.search(re.sub(r'\{[^{}]*\}', '', text)) or HANDED_ON.search(text) else 'does not say what to do'


def test_every_message_names_what_is_wrong_and_what_to_do():
    read = in_package()
    assert len(read) > 400 and {module for module, _, _ in read} >= {'core', 'attention', 'data/fetch', 'metrics/frechet', 'rivals/inputs', 'pretraining/sd', 'reporting/tables', 'stats'}
    bad = [f'{module}, line {line}: {text!r} {problem(text)}' for module, line, text in read if problem(text)]
    assert not bad, '\n'.join(bad)


def test_what_notebooks_raise_is_read_too():
    read = in_notebooks()
    assert {name for name, _, _ in read} >= {'data_prep/own_images.ipynb', 'nbs/sample.ipynb', 'nbs/8_studies/power.ipynb', 'paper_figures/figure4.ipynb'}
    bad = [f'{name}, cell {number}: {text!r} {problem(text)}' for name, number, text in read if problem(text)]
    assert not bad, '\n'.join(bad)


def test_what_is_put_behind_a_place_says_what_to_do():
    "Such as 'row 3: the text does not name dog, correct one of the two.'; for a result, check_result adds the remedy."
    paths = [path for path in sorted((ROOT/'tokencompose').rglob('*.py')) if path.name != 'results.py']
    read = [(path.stem, *found) for path in paths for found in problems(ast.parse(path.read_text()))]
    assert len(read) > 25
    bad = [f'{module}, line {line}: {text!r}' for module, line, text in read if not REMEDY.search(re.sub(r'\{[^{}]*\}', '', text))]
    assert not bad, '\n'.join(bad)


@pytest.mark.parametrize('text, wrong', [
    ('', 'says nothing'), ('Something went wrong.', 'does not name'), ('{path} is broken.', 'does not say what to do'), ('The file {path} is broken: make it again', 'is no sentence'),
    ('The class name {name} is too long.', 'does not say what to do'), ('{path} is broken: make it again.', ''), ('it holds {n} pictures', ''), ('{where}: {problem}.', '')])
def test_messages_are_read_closely(text, wrong): assert problem(text).startswith(wrong) and bool(problem(text)) == bool(wrong)


def test_constants_are_put_in():
    tree = ast.parse("_AGAIN = 'make it again.'\nraise ValueError(f'{path} is broken: {_AGAIN}')\nraise _Stopped\nraise ValueError")
    assert raised(tree) == [(2, '{path} is broken: make it again.'), (4, '')]
