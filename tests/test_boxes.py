"""Boxes for nouns: prompts on real captions, the assignment against a slow one, both libraries against each other and against the package's own inference, and what goes wrong."""
import pickle
import warnings

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from transformers import BertConfig, BertModel, BertTokenizerFast

from tokencompose.core import read_jsonl
from tokencompose.data.boxes import assign_boxes, clean_noun, FoundBoxes, grounding_prompt, grounding_prompts, Prompt
from tokencompose.data.boxes import GroundingDinoConfig, GroundingDinoGrounder, HFGroundingDinoGrounder, load_grounder
from tokencompose.data.boxes import load_published, locations, new_grounding_dino, noun_tokens, resized, SEPARATORS, write_bert
from tokencompose.data.world import draw_scene, render, VSR

CAPTIONS = ROOT.parent/'shared'/'data'/'captions_nouns.jsonl'
TINY = GroundingDinoConfig(short_side=64, long_side=106, embed_dim=16, depths=(1, 2), num_heads=(2, 2), window_size=4, out_stages=(0, 1), num_feature_levels=3, nheads=4,
                           enc_layers=2, dec_layers=2, dim_feedforward=32, num_queries=20)
NOUNS = [['cat', 'hot dog'], ['man', 'woman', 'hot dog', 'dog'], [], ['zebra']]


@pytest.fixture(scope='module')
def bert(tmp_path_factory):
    "A BERT folder whose separators have the numbers that they have in bert-base-uncased; letters, so that any word can be spelled, and a few words."
    folder = tmp_path_factory.mktemp('bert')
    letters = [chr(c) for c in range(33, 127) if chr(c) not in '.?' and not chr(c).isupper()]
    vocabulary = [f'[unused{i}]' for i in range(1030)]
    vocabulary[0], vocabulary[100:104], vocabulary[1012], vocabulary[1029] = '[PAD]', ['[UNK]', '[CLS]', '[SEP]', '[MASK]'], '.', '?'
    vocabulary += [*letters, *(f'##{c}' for c in letters if c.isalnum()), 'hot', 'dog', 'cat', 'man', 'woman']
    write_bert(folder, vocabulary, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64)
    return folder


@pytest.fixture(scope='module')
def tokenizer(bert):
    return BertTokenizerFast.from_pretrained(bert)


@pytest.fixture(scope='module')
def model(bert):
    "A random model whose boxes and queries differ from each other, as those of a trained one do."
    torch.manual_seed(0)
    model = new_grounding_dino(TINY, bert)
    for parameter in model.parameters(): parameter.data += .02*torch.randn(parameter.shape)
    return model


@pytest.fixture(scope='module')
def grounder(model):
    return GroundingDinoGrounder(model, TINY, box_threshold=.45, text_threshold=.4, device='cpu')


@pytest.fixture(scope='module')
def pictures():
    return [render(draw_scene(('test boxes', i), VSR))[0] for i in range(4)]


def close(a, b, eps=1e-4):
    "Whether two answers name the same boxes, up to rounding."
    assert [[x.noun for x in g.boxes] for g in a] == [[x.noun for x in g.boxes] for g in b]
    for g, h in zip(a, b, strict=True):
        assert (len(g.unassigned), g.left_out) == (len(h.unassigned), h.left_out)
        for x, y in zip(g.boxes + g.unassigned, h.boxes + h.unassigned): np.testing.assert_allclose([*x.box, x.score], [*y.box, y.score], atol=64*eps, rtol=0)


# ---- prompts

@pytest.mark.parametrize('nouns, text', [
    (['Cat'], 'cat.'), (['hot dog', 'Hot  Dog', 'man'], 'hot dog . man.'), (['T.V.', 'what?', '...', ''], 't v . what.'), ([], ''), (['猫', '🐱 cat'], '猫 . 🐱 cat.'), (['İzmir', 'naïve'], 'i̇zmir . naïve.')])
def test_prompt(nouns, text, tokenizer):
    prompt = grounding_prompt(nouns)
    assert prompt.text == text
    assert [prompt.text[a:b] for a, b in prompt.spans] == [clean_noun(nouns[i]) for i in prompt.nouns]
    ids, own = tokenizer(prompt.text).input_ids, noun_tokens(prompt, tokenizer)
    separators = tokenizer.convert_tokens_to_ids(list(SEPARATORS))
    assert own.shape == (len(prompt.nouns), len(ids))
    assert own.sum(0).tolist() == [int(i not in separators) for i in ids]


def test_prompts_of_real_captions(tokenizer):
    "Every token belongs to exactly one noun or is a separator, and the tokens of a noun spell it."
    if not CAPTIONS.is_file(): pytest.skip('needs the real captions, shared/data/captions_nouns.jsonl beside the repository')
    separators = set(tokenizer.convert_tokens_to_ids(list(SEPARATORS)))
    for row in read_jsonl(CAPTIONS):
        prompts, left_out = grounding_prompts(row['nouns'], tokenizer)
        assert len(prompts) == 1 and not left_out
        ids, own = tokenizer(prompts[0].text).input_ids, noun_tokens(prompts[0], tokenizer)
        assert [int(own[:, t].sum()) for t in range(len(ids))] == [int(i not in separators) for i in ids]
        for place, row_tokens in zip(prompts[0].nouns, own):
            spelled = ''.join(tokenizer.convert_ids_to_tokens(i).removeprefix('##') for i, mine in zip(ids, row_tokens) if mine)
            if '[UNK]' not in spelled: assert spelled == clean_noun(row['nouns'][place]).replace(' ', '')


def test_long_lists_are_split_not_cut(tokenizer):
    nouns = [f'zebra{i}' for i in range(100)] + ['x'*80, 'zebra0']
    prompts, left_out = grounding_prompts(nouns, tokenizer, limit=256, longest=64)
    assert sorted(place for p in prompts for place in p.nouns) == list(range(100))
    assert all(len(tokenizer(p.text).input_ids) <= 256 for p in prompts) and len(prompts) > 1
    assert left_out == [(100, '80 tokens, more than the model reads')]


def test_no_noun_no_prompt(tokenizer):
    assert grounding_prompt([]) == Prompt('', (), ())
    assert grounding_prompts([], tokenizer) == ([], [])


def test_what_cannot_be_asked_for_is_named(tokenizer):
    left_out = grounding_prompts(['hot dog', '', 'cat', 'zebra'*9, 'cat', 'man'], tokenizer, limit=10, longest=24)[1]
    assert left_out == [(1, 'no token'), (3, '45 tokens, more than the model reads')]


# ---- the assignment

def slowly(logits, boxes, size, prompt, tokenizer, box_threshold, text_threshold):
    "The definition, one number at a time: (place of the noun or None, score) of each box that counts."
    ids, answers = tokenizer(prompt.text, return_offsets_mapping=True), []
    owner = [next((n for n, (a, b) in zip(prompt.nouns, prompt.spans) if a <= start < end <= b), None) for start, end in ids.offset_mapping]
    for row in logits:
        p = [1/(1 + np.exp(-float(row[t]))) for t in range(len(owner))]
        if max(p) <= box_threshold: continue
        best = max(((p[t], -prompt.nouns.index(owner[t])) for t in range(len(p)) if owner[t] is not None), default=(0, 0))
        answers.append((prompt.nouns[-best[1]] if best[0] > text_threshold else None, round(max(p), 5)))
    return sorted(answers, key=str)


@pytest.mark.parametrize('seed', range(8))
def test_assignment_against_the_definition(seed, tokenizer):
    rng = np.random.default_rng(seed)
    prompt = grounding_prompt([['woman', 'man', 'hot dog', 'dog', 'zebra', 'man'][i] for i in rng.permutation(6)])
    logits, boxes = torch.full((40, 256), -torch.inf), torch.from_numpy(rng.uniform(.2, .6, (40, 4))).float()
    tokens = len(tokenizer(prompt.text).input_ids)
    logits[:, :tokens] = torch.from_numpy(rng.normal(-1.5, 1, (40, tokens))).float()
    found = assign_boxes(logits, boxes, (48, 64), prompt, tokenizer, .5, .45)
    fast = [(b.noun, round(b.score, 5)) for b in found.boxes] + [(None, round(b.score, 5)) for b in found.unassigned]
    assert sorted(fast, key=str) == slowly(logits, boxes, (48, 64), prompt, tokenizer, .5, .45)
    assert found.boxes and found.unassigned
    assert [b.score for b in found.boxes] == sorted((b.score for b in found.boxes), reverse=True)
    shuffled = torch.from_numpy(rng.permutation(40))
    assert assign_boxes(logits[shuffled], boxes[shuffled], (48, 64), prompt, tokenizer, .5, .45) == found


def test_parts_of_words_and_of_names(tokenizer):
    "A woman's box is not the man's, a hot dog's not the dog's; a box that answers to no word is nobody's, whatever stands first."
    prompt = grounding_prompt(['man', 'woman', 'dog', 'hot dog'])
    assert tokenizer.tokenize(prompt.text) == ['man', '.', 'woman', '.', 'dog', '.', 'hot', 'dog', '.']
    p = torch.full((4, 256), .01)
    p[0, 3], p[1, 7], p[2, 8], p[3, 2] = .5, .6, .7, .8   # woman, hot, the dog of hot dog, a full stop
    found = assign_boxes(p.logit(), torch.full((4, 4), .5), (10, 10), prompt, tokenizer)
    assert [b.noun for b in found.boxes] == [3, 3, 1]
    assert [(b.phrase, round(b.score, 3)) for b in found.unassigned] == [('.', .8)]


@pytest.fixture
def by_hand(tokenizer):
    "Four boxes: a man's, a dog's, a hot dog's, and one that answers to a full stop."
    prompt, p = grounding_prompt(['woman', 'man', 'hot dog', 'dog']), torch.full((4, 256), .01)
    p[0, 1], p[0, 3] = .4, .6
    p[1, 5], p[1, 6], p[1, 8] = .3, .5, .51
    p[2, 5], p[2, 6], p[2, 8] = .7, .3, .69
    p[3, 2], p[3, 1] = .9, .2
    centres = torch.tensor([[.25, .5, .5, 1.], [.5, .5, .2, .2], [.5, .5, .4, .4], [.9, .9, .4, .4]])
    return lambda *thresholds: assign_boxes(p.logit(), centres, (50, 100), prompt, tokenizer, *thresholds)


def test_scores_and_borders(by_hand):
    found = by_hand()
    assert [b.noun for b in found.boxes] == [2, 1, 3]
    assert [b.score for b in found.boxes] == pytest.approx([.7, .6, .51])
    assert [(b.phrase, b.box) for b in found.unassigned] == [('.', (70, 35, 100, 50))]  # cut at the border


def test_the_two_thresholds(by_hand):
    assert by_hand(.65, .25).boxes == by_hand().boxes[:1]
    strict = by_hand(.25, .65)
    assert ([b.noun for b in strict.boxes], [b.phrase for b in strict.unassigned]) == ([2], ['.', '', ''])


def test_equal_scores_come_in_reading_order(tokenizer):
    prompt = grounding_prompt(['cat'])
    logits, boxes = torch.zeros(4, 256), torch.tensor([[.8, .8, .1, .1], [.2, .8, .1, .1], [.8, .2, .1, .1], [.2, .2, .1, .1]])
    found = assign_boxes(logits, boxes, (100, 100), prompt, tokenizer)
    assert [tuple(round(v) for v in b.box[:2]) for b in found.boxes] == [(15, 15), (75, 15), (15, 75), (75, 75)]
    one, two = FoundBoxes(found.boxes[:3:2]), FoundBoxes(found.boxes[1::2])
    one.add(two)
    assert one == found   # the union of two prompts' boxes is ordered like one


# ---- groundingdino-py

def test_the_defaults_are_the_published_configuration():
    with warnings.catch_warnings(action='ignore'):
        import groundingdino
        from groundingdino.util.slconfig import SLConfig
    theirs, ours = SLConfig.fromfile(f'{groundingdino.__path__[0]}/config/GroundingDINO_SwinT_OGC.py'), GroundingDinoConfig()
    same = ['hidden_dim', 'nheads', 'enc_layers', 'dec_layers', 'dim_feedforward', 'num_queries', 'num_feature_levels']
    assert {name: getattr(theirs, name) for name in same} == {name: getattr(ours, name) for name in same}
    assert (tuple(theirs.return_interm_indices), theirs.enc_n_points, theirs.dec_n_points, theirs.embed_init_tgt, theirs.use_text_enhancer) == (ours.out_stages, ours.enc_points, ours.dec_points, ours.learned_queries, ours.text_enhancer)
    assert (theirs.backbone, theirs.position_embedding, theirs.pe_temperatureH, theirs.pe_temperatureW, theirs.two_stage_type) == ('swin_T_224_1k', 'sine', 20, 20, 'standard')


def test_published_layout(bert, tokenizer, pictures, tmp_path):
    "A model that the package builds from its own file, thinner: saved as published, loaded by us, it finds what the package's own inference finds."
    with warnings.catch_warnings(action='ignore'):
        import groundingdino
        from groundingdino.models import build_model
        from groundingdino.util.inference import predict
        from groundingdino.util.slconfig import SLConfig
        args = SLConfig.fromfile(f'{groundingdino.__path__[0]}/config/GroundingDINO_SwinT_OGC.py')
        thin = dict(enc_layers=1, dec_layers=1, dim_feedforward=32, num_queries=20)
        args.update(**thin, text_encoder_type=str(tmp_path/'weights'), use_checkpoint=False, use_transformer_ckpt=False)
        BertModel(BertConfig.from_pretrained(bert)).save_pretrained(tmp_path/'weights'); tokenizer.save_pretrained(tmp_path/'weights')
        torch.manual_seed(1)
        theirs = build_model(args).eval()
    for parameter in theirs.parameters(): parameter.data += .02*torch.randn(parameter.shape)  # no two boxes alike
    state = {f'module.{k}': v for k, v in theirs.state_dict().items()} | {'module.label_enc.weight': torch.zeros(2, 2), 'module.bert.embeddings.position_ids': torch.arange(64)[None]}
    torch.save(dict(model=state), tmp_path/'groundingdino_swint_ogc.pth')
    config = GroundingDinoConfig(short_side=64, long_side=106, **thin)
    ours = load_published(tmp_path/'groundingdino_swint_ogc.pth', bert, config, device='cpu')
    for image in (pictures[0], np.asarray(Image.fromarray(pictures[1]).resize((90, 50)))):
        nouns = ['hot dog', 'cat', 'man']
        with warnings.catch_warnings(action='ignore'): boxes, scores, phrases = predict(theirs, ours.pixels([image])[0], 'hot dog . cat . man.', .25, .25, device='cpu')
        found = ours([image], [nouns])[0]
        h, w = image.shape[:2]
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:]/2, boxes[:, :2] + boxes[:, 2:]/2], 1).clamp(0, 1)*torch.tensor([w, h, w, h])
        assert len(boxes) > 5
        np.testing.assert_allclose(sorted((*b.box, b.score) for b in found.boxes + found.unassigned), sorted(zip(*corners.T.tolist(), scores.tolist())), atol=1e-4)


def test_pixels_are_the_packages(grounder):
    with warnings.catch_warnings(action='ignore'): import groundingdino.datasets.transforms as T
    pipeline = T.Compose([T.RandomResize([64], max_size=106), T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    image = np.random.default_rng(0).integers(0, 256, (120, 333, 3), dtype=np.uint8)
    assert torch.equal(grounder.pixels([image])[0], pipeline(Image.fromarray(image), None)[0])


@pytest.mark.parametrize('size', [(100, 200), (64, 64), (333, 120), (75, 77)])
def test_sizes_are_the_packages(size, grounder):
    assert tuple(grounder.pixels([np.zeros((*size, 3), np.uint8)]).shape[2:]) == resized(*size, *grounder.sides)


def test_company_does_not_matter(grounder, pictures):
    "Batches of any size and images of several sizes give each image the boxes it has alone."
    images = pictures + [pictures[0][:40], pictures[1][:40]]
    nouns = NOUNS + [['cat', 'man'], ['woman']]
    alone = [grounder([i], [n])[0] for i, n in zip(images, nouns)]
    assert sum(len(g.boxes) for g in alone) > 20 and alone[2] == FoundBoxes()
    for batch in (1, 3, 16):
        grounder.batch = batch
        close(grounder(images, nouns), alone)


def test_two_prompts_for_one_image(grounder, pictures):
    "More nouns than the model reads at once: every noun is asked for, and boxes of both prompts come in one order."
    asked, forward = [], grounder.forward
    grounder.forward = lambda pixels, texts: asked.extend(texts) or forward(pixels, texts)
    nouns = [f'zebra{i}' for i in range(60)]
    try: found = grounder(pictures[:1], [nouns])[0]
    finally: del grounder.forward
    assert len(asked) == 2 and {n for text in asked for n in text.rstrip('.').split(' . ')} == set(nouns)
    assert found.boxes == sorted(found.boxes, key=lambda b: -b.score)


def test_maps_are_those_of_the_model(grounder, model):
    sizes = []
    hook = model.transformer.register_forward_pre_hook(lambda module, args: sizes.append([tuple(s.shape[-2:]) for s in args[0]]))
    for height, width in ((64, 64), (64, 106), (71, 64)):
        grounder.forward(torch.zeros(1, 3, height, width), ['cat.'])
        assert sizes[-1] == grounder.maps(height, width)
    hook.remove()
    assert sum(h*w for h, w in locations(800, 1066, 4, (1, 2, 3), 4)) > 900


def test_a_published_file_of_another_configuration(bert, model, tmp_path):
    torch.save(dict(model=model.state_dict()), tmp_path/'gd.pth')
    for other in (dict(enc_layers=1), dict(embed_dim=32)):
        with pytest.raises(ValueError, match='another configuration'):
            load_published(tmp_path/'gd.pth', bert, GroundingDinoConfig.from_params(TINY.to_dict() | other))


# ---- transformers

def to_transformers(state):
    "Weights of groundingdino-py under the names of transformers; its joint projections of query, key and value taken apart."
    rules = [('transformer.tgt_embed', 'model.query_position_embeddings'), ('transformer.enc_out_bbox_embed', 'model.encoder_output_bbox_embed'), ('decoder.norm', 'decoder.layer_norm'), ('ref_point_head', 'reference_points_head'),
             ('backbone.0.patch_embed.proj', 'model.backbone.conv_encoder.model.embeddings.patch_embeddings.projection'), ('backbone.0.patch_embed', 'model.backbone.conv_encoder.model.embeddings'),
             ('backbone.0.layers', 'model.backbone.conv_encoder.model.encoder.layers'), ('backbone.0.norm0', 'model.backbone.conv_encoder.model.hidden_states_norms.stage1'), ('backbone.0.norm1', 'model.backbone.conv_encoder.model.hidden_states_norms.stage2'),
             ('attn.relative', 'attention.self.relative'), ('attn.qkv', 'attention.self.qkv'), ('attn.proj', 'attention.output.dense'), ('mlp.fc1', 'intermediate.dense'), ('mlp.fc2', 'output.dense'),
             ('input_proj', 'model.input_proj_vision'), ('bert.', 'model.text_backbone.'), ('feat_map', 'model.text_projection'), ('transformer.', 'model.')]
    by_place = {'blocks': [('norm1', 'layernorm_before'), ('norm2', 'layernorm_after')],
                'encoder.text_layers': [('norm1', 'layer_norm_before'), ('norm2', 'layer_norm_after'), ('linear', 'fc'), ('text_layers.0', 'layers.0.text_enhancer_layer'), ('text_layers.1', 'layers.1.text_enhancer_layer')],
                'encoder.fusion_layers': [('gamma_v', 'vision_param'), ('gamma_l', 'text_param'), ('layer_norm_v', 'layer_norm_vision'), ('layer_norm_l', 'layer_norm_text'), ('values_v', 'values_vision'), ('values_l', 'values_text'), ('out_v', 'out_vision'), ('out_l', 'out_text'),
                                          ('attn.v_', 'attn.vision_'), ('attn.l_', 'attn.text_'), ('fusion_layers.0', 'layers.0.fusion_layer'), ('fusion_layers.1', 'layers.1.fusion_layer')],
                'transformer.encoder.layers': [('norm1', 'self_attn_layer_norm'), ('norm2', 'final_layer_norm'), ('linear', 'fc'), ('layers.0', 'layers.0.deformable_layer'), ('layers.1', 'layers.1.deformable_layer')],
                'decoder.layers': [('norm1', 'encoder_attn_layer_norm'), ('norm2', 'self_attn_layer_norm'), ('norm3', 'final_layer_norm'), ('catext_norm', 'encoder_attn_text_layer_norm'), ('ca_text', 'encoder_attn_text'), ('cross_attn', 'encoder_attn'), ('linear', 'fc')]}
    renamed = {}
    for name, value in state.items():
        for place, its in by_place.items():
            if place in name:
                for old, new in its: name = name.replace(old, new)
                break
        for old, new in rules: name = name.replace(old, new) if not name.startswith('model.') or old != 'transformer.' else name
        joint = next((mark for mark in ('self.qkv.', 'in_proj_') if mark in name), None)
        parts = zip(('query', 'key', 'value'), value.chunk(3)) if joint else [(None, value)]
        for part, piece in parts: renamed[name.replace(joint, f'{"self." if joint == "self.qkv." else ""}{part}.') if joint else name] = piece
    return renamed


@pytest.fixture(scope='module')
def hf_model(bert, model):
    from transformers import GroundingDinoConfig as Config, GroundingDinoForObjectDetection, SwinConfig
    swin = SwinConfig(embed_dim=16, depths=[1, 2], num_heads=[2, 2], window_size=4, out_indices=[1, 2])
    sizes = dict(num_queries=20, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=4, decoder_attention_heads=4, num_feature_levels=3)
    hf = GroundingDinoForObjectDetection(Config(swin, text_config=BertConfig.from_pretrained(bert), **sizes))
    missing, surplus = hf.load_state_dict(to_transformers(model.state_dict()), strict=False)
    assert not missing and all('pooler' in name for name in surplus), (missing, surplus)
    return hf


def test_both_libraries_find_the_same(hf_model, bert, grounder, pictures, tmp_path):
    "The same weights in transformers and in groundingdino-py: two implementations, one answer, also for several prompts in a batch."
    from transformers import GroundingDinoImageProcessor
    for part in (hf_model, BertTokenizerFast.from_pretrained(bert), GroundingDinoImageProcessor(size=dict(shortest_edge=64, longest_edge=106))): part.save_pretrained(tmp_path)
    hf = load_grounder(tmp_path, box_threshold=grounder.box_threshold, text_threshold=grounder.text_threshold, batch=4, device='cpu')
    assert isinstance(hf, HFGroundingDinoGrounder)
    ours = grounder(pictures, NOUNS)
    assert sum(len(g.boxes) for g in ours) > 20
    close(hf(pictures, NOUNS), ours, eps=1e-3)
    for size in ((64, 64), (64, 106)): assert hf.maps(*size) == grounder.maps(*size)


def test_transformers_needs_berts_own_vocabulary(hf_model, tmp_path):
    write_bert(tmp_path, ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', '?', 'cat'])
    with pytest.raises(ValueError, match='not that of bert-base-uncased'): HFGroundingDinoGrounder(hf_model, BertTokenizerFast.from_pretrained(tmp_path), None)


# ---- what goes wrong

@pytest.mark.parametrize('keep, lacks', [([], 'config.json and vocab.txt'), (['config.json'], 'vocab.txt or tokenizer.json'), (['vocab.txt'], 'config.json')])
def test_missing_bert_folder(keep, lacks, bert, tmp_path):
    for name in keep: (tmp_path/name).write_bytes((bert/name).read_bytes())
    with pytest.raises(FileNotFoundError, match=f'There is no BERT folder .*lacks {lacks}'): new_grounding_dino(TINY, tmp_path)
    (tmp_path/'gd.pth').touch()
    with pytest.raises(FileNotFoundError, match='parameter `bert`'): load_grounder(tmp_path/'gd.pth')


def test_vocabulary_without_separators(tmp_path):
    write_bert(tmp_path, ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', 'cat'], hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    with pytest.raises(ValueError, match=r"no token '\?'"): GroundingDinoGrounder(new_grounding_dino(TINY, tmp_path), TINY, device='cpu')


class Payload:
    def __reduce__(self): return (pytest.fail, ('code in a checkpoint was executed',))


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', pickle.dumps(Payload()), None])
def test_unreadable_checkpoint(content, bert, tmp_path):
    path = tmp_path/'groundingdino_swint_ogc.pth'
    torch.save(dict(weights={}), path) if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match='cannot be read'): load_published(path, bert, TINY)


def test_unreadable_zoo(grounder, tmp_path):
    grounder.save_pretrained(tmp_path)
    weights = (tmp_path/'model.safetensors').read_bytes()
    (tmp_path/'model.safetensors').write_bytes(weights[:1000])
    with pytest.raises(ValueError, match='cannot be read'): load_grounder(tmp_path)
    (tmp_path/'model.safetensors').unlink()
    with pytest.raises(ValueError, match='cannot be read'): load_grounder(tmp_path)
    with pytest.raises(FileNotFoundError, match='holds 0 checkpoints'): load_grounder(tmp_path/'bert'/'none')


@pytest.mark.parametrize('image', [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 3), np.uint8), Image.new('RGB', (8, 8))])
def test_images_must_be_rgb_bytes(image, grounder):
    with pytest.raises(ValueError, match='Image 0 is not a uint8 array'): grounder([image], [['cat']])


def test_a_list_of_nouns_for_each_image(grounder, pictures):
    with pytest.raises(ValueError, match='1 images but 2 lists'): grounder(pictures[:1], [[], []])


def test_a_model_of_another_type(bert):
    with pytest.raises(ValueError, match="of type 'bert'"): load_grounder(bert)


def test_an_image_that_is_too_narrow(grounder, monkeypatch):
    "1 x 25, 1 x 13 and 1 x 7 places are 45; a model that returns more boxes than that cannot be asked."
    image = np.zeros((4, 400, 3), np.uint8)
    assert grounder([image], [['cat']])[0].left_out == []
    monkeypatch.setattr(grounder, 'num_queries', 46)
    assert grounder([image], [['cat']])[0].left_out == [(0, 'the image is too narrow for the model')]


def test_odd_nouns_and_narrow_images(grounder, pictures):
    "What cannot be asked for is named; the rest is answered."
    found = grounder([pictures[0], np.zeros((3, 900, 3), np.uint8), pictures[0]], [['', '...', 'cat', 'x'*90], ['cat'], ['猫', '🐱', 'cat'*5]])
    assert found[0].left_out == [(0, 'no token'), (1, 'no token'), (3, '90 tokens, more than the model reads')]
    assert found[1].left_out in ([], [(0, 'the image is too narrow for the model')])
    assert {b.noun for b in found[0].boxes} <= {2} and found[2].left_out == []
