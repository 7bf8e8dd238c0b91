"""Files that somebody else made to do harm: each is refused with a sentence, and nothing of it runs or is written elsewhere."""
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib

import pytest
import torch
from conftest import ROOT

from tokencompose.core import file_sha256, MAX_ROWS, provenance, read_json, read_jsonl, write_json
from tokencompose.checkpoints import save_checkpoint
from tokencompose.data.boxes import load_published
from tokencompose.data.dataset import image_header, load_image, read_rows
from tokencompose.data.fetch import extract
from tokencompose.data.folder import read_folder
from tokencompose.data.masks import load_mask
from tokencompose.data.sam import load_sam
from tokencompose.data.tagging import read_flair_file
from tokencompose.metrics.fid import Inception
from tokencompose.metrics.multigen import read_prompts
from tokencompose.models import load_pipeline, tiny_pipeline
from tokencompose.params import check_params
from tokencompose.pretraining.fit import fit, FitConfig


class Payload:
    "Runs a command where it is unpickled."
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.system, (f'touch {self.mark}',)


@pytest.fixture
def mark(tmp_path):
    path = tmp_path/'it-ran'
    yield path
    assert not path.exists(), 'code of a file was executed'


def poisoned(path, mark, form='zip'):
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == 'zip': torch.save(dict(model=Payload(mark), state_dict=Payload(mark)), path)
    else: path.write_bytes(pickle.dumps(Payload(mark)))
    return path


# ---- weights

@pytest.mark.parametrize('form', ['zip', 'pickle'])
@pytest.mark.parametrize('load', [load_sam, lambda path: load_published(path, ROOT/'tokencompose/zoo/groundingdino/bert'), read_flair_file, lambda path: Inception(path, 'cpu', file_sha256(path))],
                         ids=['sam', 'groundingdino', 'flair', 'inception'])
def test_weights_with_code_in_them(tmp_path, mark, load, form):
    with pytest.raises(ValueError, match='weights.pth') as refused: load(poisoned(tmp_path/'weights.pth', mark, form))
    assert '\n' not in str(refused.value)


@pytest.mark.parametrize('form', ['zip', 'pickle'])
def test_a_pipeline_with_code_in_its_weights(tmp_path, mark, form):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path/'model', safe_serialization=False)
    poisoned(next((tmp_path/'model'/'unet').glob('*.bin')), mark, form)
    with pytest.raises(ValueError, match='unet.*bin cannot be read'): load_pipeline(str(tmp_path/'model'), device='cpu')


def test_a_pipeline_that_brings_code(tmp_path, mark):
    tiny_pipeline().save_pretrained(tmp_path/'model')
    (tmp_path/'model'/'unet'/'evil.py').write_text(f'import os\nos.system("touch {mark}")\nclass Net: pass\n')
    write_json(tmp_path/'model'/'model_index.json', read_json(tmp_path/'model'/'model_index.json') | dict(unet=['evil', 'Net']))
    with pytest.raises(ValueError, match='asks for code of evil, which is not run'): load_pipeline(str(tmp_path/'model'), device='cpu')


def test_the_state_of_a_small_model_with_code_in_it(tmp_path, mark):
    poisoned(tmp_path/'state.pt', mark)
    layer = torch.nn.Linear(1, 1)
    with pytest.raises((ValueError, pickle.UnpicklingError)): fit(dict(layer=layer), lambda step: layer(torch.ones(1, 1)).sum(), FitConfig(steps=1), tmp_path/'state.pt')


def test_a_checkpoint_with_code_in_it(tmp_path, mark):
    from tokencompose.checkpoints import load_checkpoint, newest_checkpoint
    save_checkpoint(tmp_path, 1, dict(unet=dict(w=torch.ones(1))), {}, dict(config={}, world=1))
    step = tmp_path/'step-0000001'
    poisoned(step/'optimizer.pt', mark)
    write_json(step/'COMPLETE', {name: file_sha256(step/name) for name in ('unet.safetensors', 'optimizer.pt', 'state.json')})  # the manifest is right
    assert newest_checkpoint(tmp_path) == step
    with pytest.raises(pickle.UnpicklingError): torch.load(step/'optimizer.pt', weights_only=True)
    source = (ROOT/'tokencompose'/'checkpoints.py').read_text()
    assert source.count('torch.load(') == source.count('weights_only=True')


def test_every_load_of_weights_takes_numbers_only():
    "One reader of flair's own files is wider, and lets nothing but tensors and containers through."
    for path in (ROOT/'tokencompose').rglob('*.py'):
        text = path.read_text()
        loose = text.count('weights_only=False')
        assert loose == (1 if path.name == 'tagging.py' else 0), path
        assert 'trust_remote_code' not in text and 'custom_pipeline' not in text and 'allow_pickle=True' not in text, path
        for call in ('pickle.load(', 'joblib.load', 'yaml.load(', 'eval(', 'exec('):
            assert f' {call}' not in text.replace('.eval(', '') or path.name in ('processes.py',), (path, call)


# ---- archives and paths

@pytest.mark.parametrize('name', ['../outside.txt', '/outside.txt', 'a/../../outside.txt', 'C:\\outside.txt', '..\\outside.txt'])
def test_archives_that_lead_out(tmp_path, name):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr(zipfile.ZipInfo(name), 'x')
    with pytest.raises(ValueError, match='leads out of the folder: nothing was taken'): extract(tmp_path/'a.zip', [name], tmp_path/'in')
    assert not (tmp_path/'outside.txt').exists()


def test_archives_with_a_link(tmp_path):
    link = zipfile.ZipInfo('link')
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr(link, '/etc')
    with pytest.raises(ValueError, match='holds the link'): extract(tmp_path/'a.zip', ['link'], tmp_path/'in')


def test_tar_archives_are_not_opened_at_all(tmp_path):
    (tmp_path/'pictures').mkdir()
    with tarfile.open(tmp_path/'pictures'/'shard.tar', 'w') as t: t.addfile(tarfile.TarInfo('../outside.txt'))
    with pytest.raises((ValueError, FileNotFoundError)): read_folder(tmp_path/'pictures')
    assert not (tmp_path/'outside.txt').exists()
    for path in (ROOT/'tokencompose').rglob('*.py'): assert 'tarfile' not in path.read_text() and 'extractall' not in path.read_text()


@pytest.mark.parametrize('row', [dict(file_name='../../etc/passwd', text='a cat', attn_list=[]), dict(file_name='/etc/passwd', text='a cat', attn_list=[]),
                                 dict(file_name='a.png', text='a cat', attn_list=[['cat', '../../etc/passwd']]), dict(file_name='a.png', text='a cat', attn_list=[['cat', '/etc/passwd']])])
def test_rows_that_point_out_of_their_folder(tmp_path, row):
    (tmp_path/'metadata.jsonl').write_text(json.dumps(row))
    with pytest.raises(ValueError, match='metadata.jsonl, row 1'): read_rows(tmp_path)


def test_a_link_in_the_place_of_a_result_is_replaced_not_followed(tmp_path):
    target = tmp_path/'precious.txt'
    target.write_text('precious')
    (tmp_path/'result.json').symlink_to(target)
    write_json(tmp_path/'result.json', dict(a=1))
    assert target.read_text() == 'precious' and not (tmp_path/'result.json').is_symlink()


# ---- JSON

@pytest.mark.parametrize('read', [read_json, read_jsonl, read_prompts])
def test_deep_nesting(tmp_path, read):
    (tmp_path/'deep.json').write_text('['*100_000 + ']'*100_000)
    with pytest.raises(ValueError, match='deep.json'): read(tmp_path/'deep.json')


def test_more_rows_than_a_list_may_have(tmp_path):
    path = tmp_path/'many.jsonl'
    path.write_text('{}\n'*(MAX_ROWS + 1))
    with pytest.raises(ValueError, match='1,000,001 lines, more than the 1,000,000 allowed'): read_jsonl(path)


# ---- pictures

def png(width, height, data=b'', extra=b''):
    def chunk(kind, body): return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)) + extra + chunk(b'IDAT', data) + chunk(b'IEND', b'')


@pytest.mark.parametrize('read', [load_image, load_mask])
def test_picture_bombs(tmp_path, read):
    "A kilobyte that would unfold to gigabytes is refused by its header."
    bomb = tmp_path/'bomb.png'
    bomb.write_bytes(png(60_000, 60_000, zlib.compress(bytes(10**6))))
    with pytest.raises(ValueError, match='bomb.png cannot be read .*60000x60000|bomb.png cannot be read .*pixels'): read(bomb)


def test_a_text_in_a_picture_that_unfolds(tmp_path):
    body = b'Comment\x00\x00' + zlib.compress(bytes(200_000_000))
    chunk = struct.pack('>I', len(body)) + b'zTXt' + body + struct.pack('>I', zlib.crc32(b'zTXt' + body))
    (tmp_path/'bomb.png').write_bytes(png(1, 1, zlib.compress(bytes(4)), chunk))
    try: load_image(tmp_path/'bomb.png')
    except ValueError as error: assert 'bomb.png' in str(error)


# ---- notebooks and secrets

@pytest.mark.parametrize('value', ['__import__("os").system("touch {mark}")', '"; import os; os.system("touch {mark}") #', '{{__import__("os").system("touch {mark}")}}'])
def test_parameters_with_code_in_them_are_texts(mark, value):
    "papermill writes a value as a literal, and no notebook evaluates one."
    from papermill.translators import PythonTranslator
    namespace = {'In': ['', 'method: str = "frozen"\nlayers: list = []', PythonTranslator.codify(dict(method=value.format(mark=mark)))]}
    for source in namespace['In']: exec(source, namespace)
    with pytest.raises(ValueError, match='is not one of frozen'): check_params(namespace, method=('frozen',))


def test_no_secret_in_provenance(monkeypatch):
    for name in ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN', 'AWS_SECRET_ACCESS_KEY', 'GITHUB_TOKEN'): monkeypatch.setenv(name, 'hf_secretsecret')
    assert 'secretsecret' not in json.dumps(provenance(dict(a=1)))
    for path in (ROOT/'tokencompose').rglob('*.py'): assert 'os.environ)' not in path.read_text() and 'dict(os.environ' not in path.read_text(), path
