"""What the package says when an input is wrong: every text that a user's files, folders and parameters can lead to is read here."""
import ast
import re

import pytest
from conftest import ROOT

REACHED = ('core', 'params', 'profiles', 'methods', 'models', 'run_config', 'checkpoints', 'training', 'sampling', 'data', 'metrics', 'rivals')  # modules and packages
INSIDE = {  # not by a user's input: shapes and calls that only code can get wrong
    'data/boxes', 'data/sam', 'data/lexicon', 'data/world', 'data/attribute_prompts', 'data/mask_exam', 'metrics/frechet', 'metrics/overlap', 'metrics/latency', 'metrics/daam', 'metrics/grounding',
    'metrics/vqa', 'metrics/segments', 'metrics/detection', 'rivals/call', 'rivals/composable', 'rivals/layout', 'rivals/attend_excite', 'rivals/structured', 'data/fetch', 'data/flickr30k'}
REMEDY = re.compile(r'\b(add|annotate|allowed|ask|asked|check|choose|close|copy|correct|delete|did you mean|draw|expected|fetch|give|judge|keep|known are|leave|lower|make|move|must|name|named|needs?|not one of|'
                    r'pip install|point|put|rename|repair|replace|run|save|say|score|set|should|start|take|train|unset|use|wait|wanted|write)\b', re.I)


def said(node) -> str:
    "A text with its placeholders as {expressions}."
    if isinstance(node, ast.Constant): return str(node.value)
    if isinstance(node, ast.JoinedStr): return ''.join(map(said, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add): return said(node.left) + said(node.right)
    return f'{{{ast.unparse(node.value if isinstance(node, ast.FormattedValue) else node)}}}'


def messages() -> list:
    "(module, line, text) of everything that is raised."
    found = []
    for path in sorted((ROOT/'tokencompose').rglob('*.py')):
        module = path.relative_to(ROOT/'tokencompose').with_suffix('').as_posix()
        if module.split('/')[0] not in REACHED or module in INSIDE: continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args: found.append((module, node.lineno, said(node.exc.args[0])))
            elif isinstance(node, ast.Raise) and node.exc is not None: found.append((module, node.lineno, ''))
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
    handed_on = re.search(r'\{(self\.)?(remedy|hint|wanted|problem|reason|error|holds|_one_file\(folder\)|_meant\(.*\)|_closest\(.*\))\}', text)
    return '' if REMEDY.search(re.sub(r'\{[^{}]*\}', '', text)) or handed_on else 'does not say what to do'


def test_every_message_names_what_is_wrong_and_what_to_do():
    read = messages()
    assert len(read) > 150 and {module for module, _, _ in read} >= {'core', 'params', 'models', 'training', 'data/folder', 'data/dataset', 'data/masks', 'metrics/multigen', 'rivals/inputs'}
    bad = [f'{module}, line {line}: {text!r} {problem(text)}' for module, line, text in read if problem(text)]
    assert not bad, '\n'.join(bad)


@pytest.mark.parametrize('text, wrong', [
    ('', 'says nothing'), ('Something went wrong.', 'does not name'), ('{path} is broken.', 'does not say what to do'), ('The file {path} is broken: make it again', 'is no sentence'),
    ('{path} is broken: make it again.', ''), ('it holds {n} pictures', ''), ('{where}: {problem}.', '')])
def test_messages_are_read_closely(text, wrong): assert problem(text).startswith(wrong) and bool(problem(text)) == bool(wrong)
