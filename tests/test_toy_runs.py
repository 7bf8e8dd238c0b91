"""Every notebook that papermill runs, run by papermill with toy values. Each new one gets an entry in TOY and in RESULTS."""
import functools

import papermill as pm
import pytest
from accelerate.state import AcceleratorState
from conftest import ROOT
from make_real_files import accept_multigen, FileServer, write_coco_like
from PIL import Image
from test_bad_input import HereEngine  # noqa: F401  (registers the engine "here")
from test_detection import save_judge

from tokencompose.core import read_json, write_json, write_jsonl
from tokencompose.data.boxes import load_grounder
from tokencompose.data.captions import load_clip, select_captions
from tokencompose.data.coco import build_dataset, ClassWords, read_coco
from tokencompose.data.sam import load_segmenter
from tokencompose.data.segment import make_masks
from tokencompose.data.mask_exam import accuracy
from tokencompose.data.tagging import load_tagger, NOUN_RULES, read_captions, tag_captions
from tokencompose.data.world import captions_of, draw_scene, render
from tokencompose.data.world_files import write_world
from tokencompose.metrics.multigen import draw_prompts, save_prompts
from tokencompose.methods import parse_run
from tokencompose.models import tiny_pipeline
from tokencompose.reporting.results import save_result, toy_result
from tokencompose.sampling import sample_images


def write_pictures(folder):
    "What nbs/sample.ipynb leaves, for two prompts."
    prompts = draw_prompts(['cat', 'dog', 'pizza'], 2, seed=0, objects=2)
    sample_images(tiny_pipeline(), prompts, 1, folder, inference_steps=1)
    save_prompts(folder/'prompts.json', prompts)


def write_kept(folder):
    "What nbs/evaluate.ipynb keeps of two runs for Figures 4 and 5."
    for run in ('frozen', 'tokencompose-seed0'):
        results = folder/'mini'/'results'
        write_pictures(place := results/'pictures'/run/'multigen_coco')
        write_json(place/'prompts.json', [row | dict(found=1) for row in read_json(place/'prompts.json')])
        names = ('given', 'redrawn', 'map0', 'mask0')
        for name in names: image_of(draw_scene((0, 'kept', len(name))), results/'pictures'/run/'examples'/f'0-{name}.png')
        method, seed = parse_run(run)
        shown = dict(shown=[dict(id='000', caption='a cat', nouns=['cat'], distance=.1)])
        save_result(toy_result(method, ((1, 1), (1, 1)), seed=seed, metric='examples', notes=shown), folder)


def image_of(scene, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(scene)[0]).save(path)


def write_pipeline(folder):
    "A random base model that knows the world's words."
    tiny_pipeline([c['caption'] for i in range(40) for c in captions_of(draw_scene((0, 'toy', i)))]).save_pretrained(folder)


def write_stages(folder):
    "What 01_select_captions and 02_tag_nouns leave for the toy scenes, with the world's own answers."
    coco = read_coco(folder.parent/'scenes', 'train2017')
    finder = ClassWords(coco.classes)
    rows = [dict(image_id=i.id, file_name=i.file_name, text=i.captions[0][1]) for i in coco.images]
    write_jsonl(folder/'captions'/'captions.jsonl', rows)
    write_jsonl(folder/'nouns'/'nouns.jsonl', [row | dict(nouns=[dict(noun=m.noun, start=m.start, end=m.end) for m in finder.find(row['text'])], left_out=[]) for row in rows])


def write_own(folder):
    "Four captioned pictures as somebody might have them."
    folder.mkdir()
    for i in range(4):
        scene = draw_scene((0, 'own', i))
        Image.fromarray(render(scene)[0]).save(folder/f'picture {i}.png')
        (folder/f'picture {i}.txt').write_text('\n'.join(c['caption'] for c in captions_of(scene)[:3]))


def write_prepared(folder):
    "A data folder with all stages of the training set, by the models of the zoo."
    write_world(folder, train=8, val=3)
    coco, stages = read_coco(folder, 'train2017', 'vsr/train.jsonl'), folder/'prepared'/'train'
    select_captions(stages/'captions', coco, *load_clip('tokencompose/zoo/clip'))
    nouns = tag_captions(stages/'nouns', read_captions(stages/'captions')[0], load_tagger('tokencompose/zoo/tagger'), **NOUN_RULES['both'])
    masks = make_masks(stages/'masks', nouns, coco.folder, load_grounder('tokencompose/zoo/groundingdino'), load_segmenter('tokencompose/zoo/sam'), {})
    write_json(stages/'captions'/'provenance.json', dict(counts=dict(best_share=dict(CLIP=dict(mean=1., low=.6, high=1., images=8)))))
    write_json(stages/'masks'/'provenance.json', dict(accuracy={'whole chain': accuracy(masks, coco).to_dict('index')}))
    write_json(stages/'nouns'/'provenance.json', {})


# Parameters; "{name}" stands for a folder that INPUTS makes, and out_dir is always a new temporary folder.
TOY = {
    'data_prep/00_scenes.ipynb': dict(profile='mini', train_images=6, val_images=2, hold_out=True),
    'data_prep/00_fetch.ipynb': dict(profile='sd14', coco_url='{server}', vsr_url='{server}/vsr', multigen_url='{server}/multigen', compbench_url='{server}/compbench', geneval_url='{server}/geneval', annotations_sha256='any', val_images=1),
    'data_prep/01_select_captions.ipynb': dict(profile='mini', source='{scenes}', max_images=5),
    'data_prep/02_tag_nouns.ipynb': dict(profile='mini', captions='{stages}/captions'),
    'data_prep/03_segment.ipynb': dict(profile='mini', source='{scenes}', nouns='{stages}/nouns', max_images=5),
    'data_prep/04_build_dataset.ipynb': dict(profile='mini', masks='exact', source='{scenes}', max_rows=5),
    'data_prep/own_images.ipynb': dict(profile='mini', images='{own}'),
    'nbs/train.ipynb': dict(profile='mini', steps=4, batch_size=2, lr=1e-3, sample_every=4, model='{pipeline}', data='{dataset}', images='{scenes}/train2017', val_data='{dataset}', val_images='{scenes}/train2017'),
    'nbs/sample.ipynb': dict(profile='mini', model='{pipeline}', prompts=2, rounds=1, inference_steps=2, objects=2),
    'nbs/evaluate.ipynb': dict(profile='mini', images='{pictures}', judge='{judge}', rounds=1),
    'nbs/8_studies/run_benchmark.ipynb': dict(size='tiny', seconds=0., batch=1, large=2, inference_steps=2, sample_batch=2, judge_batch=2, device='cpu', source='{scenes}', stage_images=4),
    'nbs/explore.ipynb': dict(profile='mini', prompt='a cat', words='cat', model='{pipeline}', trained='{pipeline}', rows=['frozen', 'trained', 'layout'], inference_steps=2),
    'nbs/8_studies/run_latency.ipynb': dict(profile='mini', model='{pipeline}', repeats=2, warm_up=1, inference_steps=2, objects=2),
    'nbs/8_studies/choose_sampler.ipynb': dict(profile='mini', samplers=['ddim 2', 'dpm 2'], model='{pipeline}', trained='{pipeline}', prompts=2, rounds=1),
    'nbs/8_studies/coverage.ipynb': dict(scores=['MG3'], levels=[90.], controls=[85.], bases=[78.], seeds=[3], spreads=[0., 8.], effects=[6.], tables=100, compared=100, prompts=40),
    'nbs/8_studies/faults.ipynb': {},
    'nbs/8_studies/power.ipynb': dict(seeds=[3], prompts=[100], effects={'MG3': 8., 'found': .3}, tables=100, most=8),
    'nbs/8_studies/choose_scales.ipynb': dict(profile='mini', model='{pipeline}', data='{dataset}', images='{scenes}/train2017', lrs=[1e-3], scales=[0., 5e-3], seeds=[0, 1], steps=2, prompts=3, inference_steps=1),
    'nbs/8_studies/explanations.ipynb': dict(profile='mini', model='{pipeline}', data='{dataset}', images='{scenes}/train2017', seeds=[0, 1], times=2, factors={'fine maps': [.5, 1., 2.]}, steps=2, prompts=3, inference_steps=1),
    'nbs/8_studies/choose_recipe.ipynb': dict(profile='mini', model='{pipeline}', data='{dataset}', images='{scenes}/train2017', averages=[.5], seeds=[0, 1], steps=2, prompts=3, inference_steps=1),
    'nbs/6_pretraining/pretrain_sd.ipynb': dict(vae_steps=2, vae_scenes=8, word_scenes=60, web_scenes=12, unet_steps=2, unet_batch=2, exam_pictures=2, attribute_pictures=1, inference_steps=2, zoo='{empty}/sd'),
    'nbs/6_pretraining/pretrain_sd_v.ipynb': dict(vae='{pipeline}', word_scenes=60, web_scenes=12, unet_steps=2, unet_batch=2, channels=[16, 32, 48], heads=[1, 2, 3], text_width=32, text_layers=1, exam_pictures=2, attribute_pictures=1, inference_steps=2, zoo='{empty}/sd_v'),
    'nbs/6_pretraining/pretrain_owlv2.ipynb': dict(steps=2, batch_size=2, scenes=8, test_scenes=40, base='{pipeline}', zoo='{empty}/owlv2'),
    'nbs/6_pretraining/pretrain_clip.ipynb': dict(steps=2, batch_size=4, scenes=16, test_scenes=32, zoo='{empty}/clip'),
    'nbs/6_pretraining/pretrain_tagger.ipynb': dict(steps=2, batch_size=4, scenes=8, pool=200, test_scenes=8, real='nowhere', zoo='{empty}/tagger'),
    'nbs/6_pretraining/pretrain_groundingdino.ipynb': dict(steps=2, batch_size=2, scenes=8, test_scenes=8, zoo='{empty}/groundingdino'),
    'nbs/6_pretraining/pretrain_blip.ipynb': dict(looks=2, steps=2, batch_size=2, questions=3, scenes=8, test_scenes=8, zoo='{empty}/blip'),
    'nbs/6_pretraining/pretrain_sam.ipynb': dict(steps=2, batch_size=2, test_scenes=8, zoo='{empty}/sam'),
    'paper_figures/figure2.ipynb': dict(profile='mini', data='{prepared}', pictures=2, runs='{empty}', real='nowhere.jsonl'),
    'paper_figures/table1.ipynb': dict(profile='mini', runs='{empty}'),
    'paper_figures/figure3.ipynb': dict(steps=4, size=8),
    'paper_figures/table2.ipynb': dict(profile='mini', runs='{empty}'),
    'paper_figures/table3.ipynb': dict(profile='mini_v', runs='{empty}'),
    'paper_figures/figure5.ipynb': dict(profile='mini', runs='{runs}', columns=2),
    'paper_figures/figure4.ipynb': dict(profile='mini', runs='{runs}'),
    'paper_figures/table4.ipynb': dict(profile='mini', runs='{empty}'),
    'paper_figures/table5.ipynb': dict(profile='mini', runs='{empty}'),
}
# Files below out_dir that must be there afterwards, not empty.
RESULTS = {
    'data_prep/00_scenes.ipynb': ['provenance.json', 'held_out_attributes.json', 'scenes.png', 'annotations/captions_train2017.json', 'annotations/instances_val2017.json', 'vsr/train.jsonl', 'flickr30k/val.txt', 'flickr30k/Sentences/0.txt'],
    'data_prep/00_fetch.ipynb': ['provenance.json', 'fetch.lock.jsonl', 'LICENCES.md', 'photos.png', 'vsr/train.jsonl', 'compbench/color_val.txt', 'multigen/ade20k_obj_comp_5_1k.json'],
    'data_prep/01_select_captions.ipynb': ['provenance.json', 'captions.jsonl'],
    'data_prep/02_tag_nouns.ipynb': ['provenance.json', 'nouns.jsonl'],
    'data_prep/03_segment.ipynb': ['provenance.json', 'masks.jsonl', 'samples.png', 'weakest.png'],
    'data_prep/04_build_dataset.ipynb': ['provenance.json', 'samples.png', 'metadata.jsonl'],
    'data_prep/own_images.ipynb': ['tokencompose/metadata.jsonl', 'tokencompose/provenance.json', 'samples.png', 'weakest.png'],
    'nbs/train.ipynb': ['result.json', 'metrics.jsonl', 'pipeline/model_index.json', 'pipeline/README.md', 'samples/step-0000004.png'],
    'nbs/sample.ipynb': ['prompts.json', 'settings.json', '0_0.png', '1_0.png', 'cost.json', 'provenance.json'],
    'nbs/evaluate.ipynb': ['multigen_coco/frozen.json', 'multigen_coco/frozen-detections/settings.json', 'pictures/frozen/multigen_coco/prompts.json'],
    'nbs/8_studies/run_benchmark.ipynb': ['tiny-cpu.json', 'stages.json'],
    'nbs/explore.ipynb': ['explore.png'],
    'nbs/8_studies/run_latency.ipynb': ['latency/frozen.json'],
    'nbs/8_studies/choose_sampler.ipynb': ['choice.json', 'frozen/dpm-2/verdicts-coco/settings.json'],
    'nbs/8_studies/coverage.ipynb': ['coverage.json', 'cells.jsonl', 'coverage.png'],
    'nbs/8_studies/faults.ipynb': ['faults.md'],
    'nbs/8_studies/power.ipynb': ['power.json'],
    'nbs/8_studies/choose_scales.ipynb': ['choice.json', 'frozen/verdicts-coco/settings.json'],
    'nbs/8_studies/explanations.ipynb': ['explanations.json', 'lr-0.0003_lambda-0.02_steps-4_seed-1/pipeline/model_index.json', 'found/lr-0.0003_lambda-0.02_fine-maps_seed-0.json'],
    'nbs/8_studies/choose_recipe.ipynb': ['choice.json', 'constant-seed1/unet_ema-0.5/config.json', 'constant-seed1/drawn-0.5/verdicts-coco/settings.json'],
    'nbs/6_pretraining/pretrain_sd.ipynb': ['vae.pt', 'unet.pt', 'provenance.json'],
    'nbs/6_pretraining/pretrain_sd_v.ipynb': ['moments.pt', 'unet.pt', 'provenance.json'],
    'nbs/6_pretraining/pretrain_owlv2.ipynb': ['owlv2.pt', 'provenance.json'],
    'nbs/6_pretraining/pretrain_clip.ipynb': ['clip.pt', 'provenance.json'],
    'nbs/6_pretraining/pretrain_tagger.ipynb': ['tagger.pt', 'provenance.json'],
    'nbs/6_pretraining/pretrain_groundingdino.ipynb': ['groundingdino.pt', 'provenance.json'],
    'nbs/6_pretraining/pretrain_blip.ipynb': ['blip.pt', 'mistakes.png', 'provenance.json'],
    'nbs/6_pretraining/pretrain_sam.ipynb': ['sam.pt', 'provenance.json'],
    'paper_figures/figure2.ipynb': ['figure2_captions.png', 'figure2_masks.png', 'figure2_steps.md', 'figure2_masks.md'],
    'paper_figures/table1.ipynb': ['table1.md', 'table1.csv', 'table1.txt', 'table1_ade20k.md', 'table1_difference.md'],
    'paper_figures/figure5.ipynb': ['figure5.png'],
    'paper_figures/figure3.ipynb': ['figure3.png', 'figure3.md'],
    'paper_figures/table3.ipynb': ['table3.md', 'table3.csv', 'table3.txt', 'table3_difference.md', 'table3_grounding.md'],
    'paper_figures/table2.ipynb': ['table2.md', 'table2.csv', 'table2.txt', 'grounding.md'],
    'paper_figures/figure4.ipynb': ['figure4.png'],
    'paper_figures/table4.ipynb': ['table4.md', 'table4.csv', 'table4.txt', 'table4_difference.md', 'table4_distances.md'],
    'paper_figures/table5.ipynb': ['table5.md', 'table5.csv', 'table5.txt', 'table5_difference.md', 'table5_held_out.md', 'geneval.md'],
}
# A kernel of their own, as a user starts them; the others run in this process, which has imported everything already.
OWN_KERNEL = {'nbs/train.ipynb', 'data_prep/03_segment.ipynb'}

# What a notebook needs from the steps before it: a function that fills a folder.
INPUTS = {
    'scenes': functools.partial(write_world, train=8, val=3),
    'dataset': lambda folder: build_dataset(folder, read_coco(folder.parent/'scenes', 'train2017')),
    'stages': write_stages,
    'own': write_own,
    'prepared': write_prepared,
    'pipeline': write_pipeline,
    'judge': save_judge,
    'pictures': write_pictures,
    'runs': write_kept,
    'empty': lambda folder: folder.mkdir(),
}
NEEDS = {'dataset': ['scenes'], 'stages': ['scenes']}  # inputs that are made from others


class Inputs(dict):
    "Folders by name, made on first use."
    def __init__(self, folder, **there):
        super().__init__(there)
        self.folder = folder

    def __missing__(self, name):
        for needed in NEEDS.get(name, []): self[needed]
        INPUTS[name](self.folder/name)
        self[name] = self.folder/name
        return self[name]


@pytest.fixture(scope='session')
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('inputs')
    with FileServer(write_coco_like(folder/'remote', n=3, val=1, extra=0)) as server:
        yield Inputs(folder, server=server.url)


@pytest.mark.parametrize('name', TOY)
def test_toy_run(name, tmp_path, inputs, monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    accept_multigen(monkeypatch, inputs.folder/'remote')
    params = {key: value.format_map(inputs) if isinstance(value, str) else value for key, value in TOY[name].items()} | dict(out_dir=str(tmp_path/'out'))
    unknown = set(params) - set(pm.inspect_notebook(str(ROOT/name)))
    assert not unknown, f'{name} has no parameter {sorted(unknown)}'
    AcceleratorState._reset_state(reset_partial_state=True)  # as if the notebook were the first in its process
    pm.execute_notebook(str(ROOT/name), str(tmp_path/'executed.ipynb'), params, cwd=str(ROOT), progress_bar=False, execution_timeout=300, engine_name=None if name in OWN_KERNEL else 'here')
    for file in RESULTS[name]:
        path = tmp_path/'out'/file
        assert path.is_file() and path.stat().st_size > 0, f'{name} did not write {file}'
