"""Rules that every notebook and every tracked file keeps."""
import ast
import re
import subprocess
import tempfile
from pathlib import Path

import nbformat
import papermill as pm
import pytest
from conftest import ROOT
from test_toy_runs import RESULTS, TOY

from tokencompose.methods import METHODS

SKIPPED = {'.git', '.venv', '.snakemake', '.ipynb_checkpoints', 'runs', 'data'}


def tracked_files():
    "Files of the repository, by git where there is git."
    git = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
    if git.returncode == 0: names = git.stdout.split('\0')
    else: names = [p.relative_to(ROOT).as_posix() for p in ROOT.rglob('*') if not SKIPPED & set(p.relative_to(ROOT).parts)]
    return sorted(name for name in names if name and (ROOT/name).is_file())


FILES = tracked_files()
NOTEBOOKS = [name for name in FILES if name.endswith('.ipynb')]
INDEX = 'nbs/index.ipynb'
LIBRARY = [name for name in NOTEBOOKS if re.match(r'nbs/\d_\w+/\d\d_', name)]
PAPERMILL = [name for name in NOTEBOOKS if name != INDEX and re.match(r'(nbs/(\d_\w+/)?(?!\d\d_)[^/]+$|data_prep/|paper_figures/(?!executed/))', name)]
PYTHON = [name for name in FILES if name.endswith('.py')]


def cells(name, kind='code'):
    return [cell for cell in nbformat.read(ROOT/name, 4).cells if cell.cell_type == kind]


def has(cell, directive):
    return re.search(rf'^#\|\s*{directive}\b', cell.source, re.M) is not None


def python_of(cell):
    "The cell as plain Python: magics are left out."
    return '\n'.join(line for line in cell.source.split('\n') if not re.match(r'\s*[%!]', line))


def annotated_names(cell):
    return [node.target.id for node in ast.parse(cell.source).body if isinstance(node, ast.AnnAssign)]


# ---- all notebooks

@pytest.mark.parametrize('name', NOTEBOOKS)
def test_notebook(name):
    notebook = nbformat.read(ROOT/name, 4)
    assert notebook.metadata.kernelspec.language == 'python', 'papermill needs kernelspec.language'
    assert (ROOT/name).stat().st_size < 1_000_000, 'a notebook stays below 1 MB: show fewer or smaller pictures'
    assert not [o for cell in cells(name) for o in cell.outputs if o.output_type == 'error'], 'an output is an error'


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_prose_is_prose(name):
    "Code that was pasted over a text, and two cells under one id, happened."
    notebook = nbformat.read(ROOT/name, 4)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert not [cell.source for cell in notebook.cells if cell.cell_type == 'markdown' and re.match(r'#\||(def|class|import|from) \w+.*(:|import)|@', cell.source)]


def test_no_notebook_is_forgotten():
    "Each one is the map, a library notebook, a papermill notebook or a published run."
    known = [INDEX, *LIBRARY, *PAPERMILL]
    assert not [name for name in NOTEBOOKS if name not in known and not name.startswith('paper_figures/executed/')]
    assert LIBRARY and PAPERMILL and INDEX in NOTEBOOKS


def test_two_notebooks_never_share_a_file_name():
    "nbdev's pages would overwrite each other."
    names = [Path(name).name for name in NOTEBOOKS if name.startswith('nbs/')]
    assert len(set(names)) == len(names)


# ---- how notebooks read

def links(name):
    "Relative links of a notebook's prose."
    for cell in cells(name, 'markdown'):
        yield from (target.split('#')[0] for target in re.findall(r'\]\(([^)\s]+)\)', cell.source) if not re.match(r'https?:|#|mailto:', target))


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_links_lead_somewhere(name):
    dead = [target for target in links(name) if not (ROOT/name).parent.joinpath(target).exists()]
    assert not dead, dead


def test_prose_names_parameters_that_exist():
    "Of papermill's `-p`; the notebooks that explain what happens to a wrong name are left out."
    known = {name for nb in PAPERMILL for cell in cells(nb) if 'parameters' in cell.metadata.get('tags', []) for name in annotated_names(cell)}
    named = {(name, parameter) for name in NOTEBOOKS if not name.startswith(('paper_figures/executed/', 'nbs/0_base/00_', 'nbs/0_base/01_'))
             for cell in cells(name, 'markdown') for parameter in re.findall(r'-p (\w+) \S', cell.source)}
    assert not [pair for pair in named if pair[1] not in known]


def test_the_map_leads_to_every_notebook():
    linked = {(ROOT/INDEX).parent.joinpath(target).resolve() for target in links(INDEX)}
    assert not [name for name in LIBRARY + [n for n in PAPERMILL if n.startswith('nbs/')] if (ROOT/name).resolve() not in linked]


@pytest.mark.parametrize('name', LIBRARY)
def test_opens_with_the_problem_and_closes_with_what_follows(name):
    notebook = nbformat.read(ROOT/name, 4).cells
    assert [c.cell_type for c in notebook[:2]] == ['markdown', 'markdown'] or len(notebook[0].source.split('\n')) > 4, 'prose comes before imports'
    last = [c for c in notebook if c.source.strip()][-2]
    assert last.cell_type == 'markdown' and re.search(r'\]\([^)]+\)', last.source), 'the last cell before the export says what follows, with a link'


@pytest.mark.parametrize('name', LIBRARY + PAPERMILL + [INDEX])
def test_cells_are_short(name):
    for i, cell in enumerate(cells(name)):
        source = cell.source.strip()
        lines = source.split('\n')
        body = ast.parse(python_of(cell)).body
        alone = len(body) == 1 and isinstance(body[0], ast.ClassDef)
        limit = 60 if 'parameters' in cell.metadata.get('tags', []) else 61 if alone else 40  # papermill knows one cell of parameters
        assert len(lines) <= limit, f'cell {i} has {len(lines)} lines: split it'
        widest = 120 if has(cell, 'exports?') else 160
        wide = [line for line in lines if len(line) > widest and 'parameters' not in cell.metadata.get('tags', [])]
        assert not wide, f'cell {i}: longer than {widest} columns: {wide[0]}'


@pytest.mark.parametrize('name', LIBRARY + PAPERMILL + [INDEX])
def test_no_measured_number_is_typed(name):
    "An interval in prose was typed by hand: tables print theirs, RESULTS.md is generated."
    number = r'[−-]?\d+\.?\d*'
    typed = [m.group() for cell in cells(name, 'markdown') for m in re.finditer(rf'\d [\[(]{number}, {number}[\])]', cell.source)]
    assert not typed, typed


# ---- library notebooks

def module_of(name):
    return re.fullmatch(r'nbs/\d_\w+/\d\d_(.+)\.ipynb', name).group(1)


def number_of(name):
    "(part, number): the order of the argument."
    return tuple(map(int, re.match(r'nbs/(\d)_\w+/(\d\d)_', name).groups()))


PACKAGES = {'tokencompose', *(f'tokencompose.{Path(name).parent.name}' for name in PYTHON if name.startswith('tokencompose/') and name.count('/') == 2)}


def imported_modules(source):
    "Modules of the package that a cell imports."
    for node in ast.walk(ast.parse(source)):
        names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module in PACKAGES: names = [f'{node.module}.{a.name}' for a in node.names]
        yield from (name.removeprefix('tokencompose.') for name in names if name and name.startswith('tokencompose.'))


@pytest.mark.parametrize('name', LIBRARY)
def test_library_notebook(name):
    notebook, module = nbformat.read(ROOT/name, 4), module_of(name)
    first, code = notebook.cells[0], cells(name)
    assert first.cell_type == 'markdown' and re.match(rf'# ({re.escape(module)}|{module.split(".")[-1]})\n\n> \S', first.source), f'begins with "# {module}", an empty line and "> one sentence"'
    defaults = [line for cell in code for line in re.findall(r'^#\|\s*default_exp\s+(\S+)', cell.source, re.M)]
    assert defaults == [module], 'default_exp and the file name agree'
    last = [cell for cell in notebook.cells if cell.source.strip()][-1]
    assert has(last, 'hide') and 'nbdev_export()' in last.source, 'the last cell exports'
    assert not [cell for cell in code if 'parameters' in cell.metadata.get('tags', [])], 'an exporting notebook has no parameters cell'
    assert (ROOT/'tokencompose'/f'{module.replace(".", "/")}.py').is_file(), 'the module was not exported'


@pytest.mark.parametrize('name', LIBRARY)
def test_library_notebook_imports_from_lower_numbers(name):
    numbers = {module_of(other): number_of(other) for other in LIBRARY}
    for cell in cells(name):
        for module in imported_modules(python_of(cell)):
            assert module in numbers, f'{module} has no notebook'
            assert numbers[module] < number_of(name), f'{name} imports {module}, which comes later: {numbers[module]}'


@pytest.mark.parametrize('name', LIBRARY)
def test_exported_imports_stand_alone(name):
    "nbdev makes them relative only where a cell holds nothing else and each is on one line."
    for cell in cells(name):
        if not has(cell, 'exports?'): continue
        body = ast.parse(python_of(cell)).body
        package = [n for n in body if isinstance(n, ast.ImportFrom) and (n.module or '').startswith('tokencompose')]
        assert not any(isinstance(n, ast.ImportFrom) and n.level for n in body), 'imports in a notebook are absolute'
        if package: assert all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body) and all(n.lineno == n.end_lineno for n in package), cell.source


def test_every_module_has_a_notebook():
    modules = {p.relative_to(ROOT/'tokencompose').with_suffix('').as_posix().replace('/', '.') for p in map(ROOT.joinpath, PYTHON) if p.is_relative_to(ROOT/'tokencompose')}
    extra = {m for m in modules if not m.endswith('__init__') and m != '_modidx'} - {module_of(name) for name in LIBRARY}
    assert not extra, f'{sorted(extra)}: made by no notebook'


def modules():
    "Exported modules as syntax trees, by path."
    return {name: ast.parse((ROOT/name).read_text(encoding='utf-8')) for name in PYTHON if name.startswith('tokencompose/') and not name.endswith('_modidx.py')}


def test_functions_are_short():
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = [f'{name}: {n.name}' for name, tree in modules().items() for n in ast.walk(tree) if isinstance(n, kinds) and n.end_lineno - n.lineno >= 40]
    assert not long, long


def test_a_name_has_one_home():
    homes = {}
    for name, tree in modules().items():
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'): homes.setdefault(node.name, []).append(name)
    assert not {n: files for n, files in homes.items() if len(files) > 1 and n != 'main'}


def test_no_private_name_crosses_modules():
    private = [f'{name}: {a.name}' for name, tree in modules().items() for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level
               for a in n.names if a.name.startswith('_')]
    assert not private, private


def test_nobody_else_spells_the_list_of_methods():
    "Three methods in one literal are a list of methods, which belongs into tokencompose.methods."
    found = []
    code = [(name, (ROOT/name).read_text(encoding='utf-8')) for name in ('Snakefile', *modules())]
    code += [(f'{name}, cell {i}', python_of(cell)) for name in PAPERMILL for i, cell in enumerate(cells(name))]
    for name, text in code:
        if name == 'tokencompose/methods.py': continue
        for node in [] if name == 'Snakefile' else ast.walk(ast.parse(text)):
            words = node.keys if isinstance(node, ast.Dict) else node.elts if isinstance(node, (ast.List, ast.Tuple, ast.Set)) else []
            spelt = {w.value for w in words if isinstance(w, ast.Constant)} & METHODS.keys()
            if len(spelt) > 2: found.append(f'{name}: {ast.unparse(node)[:80]}')
        if name == 'Snakefile': found += [line for line in text.split('\n') if sum(f"'{method}'" in line for method in METHODS) > 2]
    assert not found, found


# ---- papermill notebooks

def test_every_papermill_notebook_has_a_toy_run():
    assert set(PAPERMILL) == set(TOY) == set(RESULTS)
    assert all(RESULTS.values()), 'every one leaves something'


@pytest.mark.parametrize('name', PAPERMILL)
def test_papermill_notebook(name):
    notebook, code = nbformat.read(ROOT/name, 4), cells(name)
    tagged = [i for i, cell in enumerate(code) if 'parameters' in cell.metadata.get('tags', [])]
    assert tagged == [0], 'one cell is tagged `parameters`, before all other code'
    assert not [cell for cell in code if has(cell, r'exports?') or has(cell, 'default_exp')], 'nothing is exported'
    titles = [cell for cell in notebook.cells if cell.cell_type == 'markdown']
    assert re.match(r'# .+\n\n> \S', titles[0].source), 'begins with a title and a quote'
    body = ast.parse(code[0].source).body
    assert all(isinstance(node, ast.AnnAssign) for node in body), 'parameters are `name: type = value`'
    assert list(pm.inspect_notebook(str(ROOT/name))) == annotated_names(code[0]), 'papermill does not recognise every parameter'
    assert 'out_dir' in annotated_names(code[0]), 'every step can be told where to write'
    assert 'check_params(globals()' in code[1].source, 'the second code cell calls check_params(globals())'
    functions = [node for cell in code for node in ast.walk(ast.parse(python_of(cell))) if isinstance(node, ast.FunctionDef)]
    assert all(node.end_lineno - node.lineno < 8 for node in functions), 'a function of more than a few lines belongs into the library'


# ---- all files

def sources():
    "Python text by name: modules, tests, and the code of every notebook."
    yield from ((name, (ROOT/name).read_text(encoding='utf-8')) for name in PYTHON)
    yield from ((f'{name}, cell {i}', python_of(cell)) for name in NOTEBOOKS for i, cell in enumerate(cells(name)))


def test_no_bare_except():
    bare = [f'{name}:{node.lineno}' for name, text in sources() for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ExceptHandler) and node.type is None]
    assert not bare, bare


def test_no_code_from_the_hub_is_trusted():
    found = [name for name, text in sources() if re.search(r'trust_remote_code\W{1,4}True', text)]
    assert not found, found


def machine_paths():
    "Patterns of paths that exist on one machine only: this one's own, and the usual homes and temporary folders."
    own = [ROOT, Path.home(), *([ROOT.parent] if len(ROOT.parent.parts) > 1 and ROOT.parent != Path(tempfile.gettempdir()) else [])]
    begins = r'(?<![\w.:~/$}-])'
    yield from (re.compile(begins + re.escape(str(path)) + r'(/|\b(?!\.))') for path in {str(p) for p in own} - {'/'})
    yield re.compile(begins + r'/(home|Users|root)/\w')
    yield re.compile(begins + re.escape(tempfile.gettempdir()) + r'/(\w{2,}|\w/\w)')
    yield re.compile(r'\b[A-Z]:\\{1,2}Users\\')


def test_no_path_of_a_machine():
    "Checked in everything that is text: code, outputs of notebooks, settings, documents."
    patterns, found = list(machine_paths()), []
    for name in FILES:
        data = (ROOT/name).read_bytes()
        if b'\0' in data[:8000]: continue
        for number, line in enumerate(data.decode('utf-8', errors='replace').split('\n'), 1):
            if len(line) > 20_000: continue  # a picture in a notebook
            found += [f'{name}:{number}: {m.group()}' for pattern in patterns if (m := pattern.search(line))]
    assert not found, found


def test_the_search_for_paths_finds_them():
    example = f'"{ROOT}/nbs", "{"/ho" + "me/ann/x"}", "{tempfile.gettempdir()}/abc123"'
    assert sum(bool(pattern.search(example)) for pattern in machine_paths()) >= 3
    assert not any(pattern.search('see https://host/home/ann, runs/root/x and ./home/x') for pattern in machine_paths())
