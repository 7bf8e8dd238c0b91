"""Work that is killed, and what it must have left when it was done again: used by the short form and by the long one of test_faults.py."""
import json
import os
import signal
import time
from pathlib import Path

from processes import Started
from tokencompose.core import file_sha256, hash_of, keyed_rng, read_jsonl
from tokencompose.data.coco import build_dataset, read_coco
from tokencompose.data.world_files import write_world
from tokencompose.metrics.detection import tiny_judge
from tokencompose.metrics.multigen import prompt_row
from tokencompose.models import tiny_pipeline
from tokencompose.sampling import sample_images

PROMPTS = [prompt_row(i, [thing]) for i, thing in enumerate(('cat', 'dog', 'pizza', 'teddy bear'))]
CODE = {  # what each work does; `place` holds its inputs, `out` receives its results
    'training': 'from tokencompose.training import train, TrainConfig\n'
                'train(TrainConfig(data=f"{place}/data", images=f"{place}/scenes/train2017", model=f"{place}/model", out_dir=out, resolution=64, steps=6, batch_size=2, lr=1e-3,\n'
                '                  token_loss_scale=1e-2, pixel_loss_scale=1e-3, checkpoint_every=1, keep_checkpoints=1, log_every=1, ema=.9))',
    'sampling': 'from tokencompose.models import load_pipeline\nfrom tokencompose.sampling import sample_images\nfrom faults import PROMPTS\n'
                'sample_images(load_pipeline(f"{place}/model", device="cpu"), PROMPTS, 3, out, batch=3, inference_steps=2)',
    'judging': 'from tokencompose.core import write_json\nfrom tokencompose.metrics.detection import detect, load_judge\nfrom faults import PROMPTS\n'
               'write_json(f"{out}/all.json", detect(load_judge(f"{place}/judge", "", "cpu"), f"{place}/pictures", PROMPTS, 3, f"{out}/verdicts", batch=2, part=2))',
    'data': 'from tokencompose.data.captions import load_clip, select_captions\nfrom tokencompose.data.coco import build_dataset, read_coco\n'
            'coco = read_coco(f"{place}/scenes", "train2017")\n'
            'select_captions(f"{out}/captions", coco, *load_clip("tokencompose/zoo/clip", "cpu"), batch=2)\nbuild_dataset(f"{out}/built", coco)'}
SPENT = '\nimport time\nprint(f"spent {time.process_time()}")'
LATER = """
import os, signal, threading, time
def watch(until=time.process_time() + {seconds}):
    while time.process_time() < until: time.sleep(.002)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
"""
AT_CALL = """
import os, signal, {module} as module
inner, calls = module.{name}, []
def dying(*args, **more):
    calls.append(1)
    if len(calls) == {call} and not {after}: os.kill(os.getpid(), signal.SIGKILL)
    result = inner(*args, **more)
    if len(calls) == {call}: os.kill(os.getpid(), signal.SIGKILL)
    return result
module.{name} = dying
"""


def at_call(module, name, call, after=False): return AT_CALL.format(module=module, name=name, call=call, after=after)


def prepared(folder):
    "The inputs of all works."
    write_world(folder/'scenes', train=6, val=1)
    build_dataset(folder/'data', read_coco(folder/'scenes', 'train2017'))
    pipe = tiny_pipeline([row['text'] for row in PROMPTS]*3)
    pipe.save_pretrained(folder/'model')
    sample_images(pipe, PROMPTS, 3, folder/'pictures', inference_steps=1)
    tiny_judge(folder/'judge')
    return folder


def start(work, place, out, before='', **environment):
    code = f'import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nplace, out = {str(place)!r}, {str(out)!r}\n{before}\n{CODE[work]}{SPENT}'
    return Started(code, **environment)


def run(work, place, out, before='', timeout=600) -> tuple:  # exit code, what it printed
    started = start(work, place, out, before)
    return started.wait(timeout), started.output


def here(work, place, out):
    "The same without a process of its own."
    exec(CODE[work], dict(place=str(place), out=str(out)))


def result_of(work, out) -> str:
    "A digest of everything a work leaves, without what a clock says."
    out = Path(out)
    if work == 'training':
        rows = [{name: value for name, value in row.items() if name != 'samples_per_second'} for row in read_jsonl(out/'metrics.jsonl')]
        return hash_of([file_sha256(out/'pipeline'/'unet'/'diffusion_pytorch_model.safetensors'), rows])
    if work == 'judging': return file_sha256(out/'all.json')
    files = [path for path in sorted(out.rglob('*')) if path.is_file() and not path.name.startswith('.') and '.tmp' not in path.name]
    return hash_of([(path.relative_to(out).as_posix(), file_sha256(path)) for path in files])


def left_over(out) -> list:
    "Half-written things that nothing removes."
    return [path.relative_to(out).as_posix() for path in Path(out).rglob('.*') if 'tmp' in path.name]


def spent(output) -> float: return float(output.rpartition('spent ')[2].split()[0])


def random_kills(work, place, out, count, seed=0) -> dict:
    "SIGKILL after a random share of the seconds that the whole takes; done again each time, and compared. Goes on after what is recorded."
    code, said = run(work, place, out/'whole')
    assert code == 0, said
    whole, wanted, each = spent(said), result_of(work, out/'whole'), recorded(f'kills of {work}').get('each', [])
    for n in range(len(each), count):
        moment = float(keyed_rng(seed, work, n).uniform(0, whole))
        code, said = run(work, place, out/f'{n}', LATER.format(seconds=moment))
        found = sorted(path.name for path in (out/f'{n}').rglob('step-*'))
        again = run(work, place, out/f'{n}')
        assert again[0] == 0, again[1]
        each = [*each, dict(seconds=round(moment, 2), killed=code == -signal.SIGKILL, checkpoints=found, same=result_of(work, out/f'{n}') == wanted)]
        record(f'kills of {work}', counted(each) | dict(seconds=round(whole, 2)))
    return counted(each)


def counted(each) -> dict:
    "Sums over kills, and each of them."
    return {name: sum(row[name] for row in each) for name in ('same', 'told') if all(name in row for row in each)} | dict(kills=sum(row['killed'] for row in each), runs=len(each), each=each)


def recorded(name) -> dict:
    "What the file that FAULTS_RECORD names holds already."
    path = Path(os.environ.get('FAULTS_RECORD') or 'none')
    return json.loads(path.read_text()).get(name, {}) if path.is_file() else {}


def record(name, value):
    "Into the file that FAULTS_RECORD names, if it names one."
    place = os.environ.get('FAULTS_RECORD')
    if not place: return
    path = Path(place)
    old = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(old | {name: value | dict(date=time.strftime('%Y-%m-%d'))}, indent=1) + '\n')
