"""Tiny random Stable Diffusion folders in the file layout of the published ones, for the dry run of the paper: same classes, blocks, map sizes and schedule, only thin and of few heads (attention over 64 x 64 places is what they spend their time on)."""
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

KINDS = dict(
    sd14=dict(sample_size=64, attention_head_dim=1, prediction_type='epsilon', use_linear_projection=False, width=32, act='quick_gelu'),
    sd21=dict(sample_size=96, attention_head_dim=[1, 1, 2, 2], prediction_type='v_prediction', use_linear_projection=True, width=64, act='gelu'))


def tiny_stable_diffusion(tokenizer, kind='sd14', seed=0):
    """A pipeline like Stable Diffusion 1.4 or 2.1 (at 768 pixels), a thousand times smaller. `tokenizer` is CLIP's, as the slow class."""
    c = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=c['width'], intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=77, hidden_act=c['act'],
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
        vae = AutoencoderKL(
            in_channels=3, out_channels=3, latent_channels=4, sample_size=512, block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=0.18215,
            down_block_types=('DownEncoderBlock2D',)*4, up_block_types=('UpDecoderBlock2D',)*4, mid_block_add_attention=False)
        unet = UNet2DConditionModel(
            sample_size=c['sample_size'], in_channels=4, out_channels=4, block_out_channels=(16, 16, 32, 32), layers_per_block=2, norm_num_groups=4, cross_attention_dim=c['width'],
            down_block_types=('CrossAttnDownBlock2D',)*3 + ('DownBlock2D',), up_block_types=('UpBlock2D',) + ('CrossAttnUpBlock2D',)*3,
            attention_head_dim=c['attention_head_dim'], use_linear_projection=c['use_linear_projection'])
    scheduler = PNDMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear', skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, prediction_type=c['prediction_type'])
    return StableDiffusionPipeline(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def tiny_clip(tokenizer, folder):
    """CLIP as openai/clip-vit-large-patch14-336 is laid out: 336 pixels in patches of 14."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor
    text = dict(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=336, patch_size=14)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessor(size=dict(shortest_edge=336), crop_size=dict(height=336, width=336)), tokenizer).save_pretrained(folder)


def tiny_tagger(folder):
    """flair/pos-english: one file, pytorch_model.bin, as flair saves it. It calls every known animal a noun."""
    from tokencompose.data.tagging import new_tagger
    words = 'a and on with cat dog horse car pizza cup bus banana clock'
    tagger = new_tagger(words, 'abcdefghijklmnopqrstuvwxyz .', 'NN DT IN', word_size=4, char_size=4, char_hidden=4, hidden=4)
    folder.mkdir(parents=True)
    for bias in [p for name, p in tagger.named_parameters() if name.endswith('linear.bias')]: torch.nn.init.constant_(bias, 0.)
    tagger.save(folder/'pytorch_model.bin')


def tiny_grounding_dino(folder):
    """groundingdino_swint_ogc.pth beside its BERT folder, with a file of sizes because it is thinner than Swin-T."""
    from tokencompose.core import write_json
    from tokencompose.data.boxes import GroundingDinoConfig, new_grounding_dino, write_bert
    letters = [chr(c) for c in range(33, 127) if chr(c) not in '.?' and not chr(c).isupper()]
    write_bert(folder/'bert', ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', '?', *letters, *(f'##{c}' for c in letters if c.isalnum())],
               hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=128)
    sizes = GroundingDinoConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), hidden_dim=32, nheads=2, enc_layers=1, dec_layers=1, dim_feedforward=16, enc_points=1, dec_points=1, num_queries=8, text_enhancer=False)
    model = new_grounding_dino(sizes, folder/'bert')
    torch.save(dict(model={f'module.{k}': v for k, v in model.state_dict().items()}), folder/'groundingdino_swint_ogc.pth')
    write_json(folder/'groundingdino_swint_ogc.json', sizes.to_dict())


def tiny_sam(folder):
    """sam_vit_h_4b8939.pth with a file of sizes: 1024 pixels in patches of 16, as published, but thin."""
    from tokencompose.core import write_json
    from tokencompose.data.sam import new_sam, SamConfig
    sizes = SamConfig(image_size=1024, patch_size=16, width=16, depth=1, heads=2, window=14, global_blocks=(), prompt_width=16, mask_channels=4, decoder_heads=2, decoder_mlp=16, iou_width=8, more_masks=3)
    torch.save(new_sam(sizes).state_dict(), folder/'sam_vit_h_4b8939.pth')
    write_json(folder/'sam_vit_h_4b8939.json', sizes.to_dict())


def tiny_owlvit(tokenizer, folder):
    """OWL-ViT as google/owlvit-base-patch32 is laid out: 768 pixels in patches of 32, texts of 16 tokens, the preprocessing in the old form. `tokenizer` is CLIP's, as the fast class."""
    from tokencompose.core import write_json
    from transformers import OwlViTConfig, OwlViTForObjectDetection
    small = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    text = dict(vocab_size=len(tokenizer), max_position_embeddings=16, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    OwlViTForObjectDetection(OwlViTConfig(text_config=text | small, vision_config=dict(image_size=768, patch_size=32) | small, projection_dim=32)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder/'preprocessor_config.json', dict(feature_extractor_type='OwlViTFeatureExtractor', size=[768, 768], crop_size=768, do_resize=True, do_center_crop=False, do_normalize=True, resample=3,
                                                       image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711]))


def write_inception(path):
    """FID's network in the published file's layout, filled at random in a way that keeps signals alive."""
    from tokencompose.metrics.fid import new_inception
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = new_inception()
        for layer in net.modules():
            if isinstance(layer, torch.nn.Conv2d): torch.nn.init.kaiming_normal_(layer.weight)
    torch.save(net.state_dict(), path)
    return path


def write_models(folder, tokenizers):
    """Every model of the profiles sd14 and sd21 in `folder`; `tokenizers` are CLIP's for each kind, as the slow class."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny_clip(tokenizers['sd14'], folder/'clip')
        tiny_tagger(folder/'pos-english')
        tiny_grounding_dino(folder)
        tiny_sam(folder)
    for kind, tokenizer in tokenizers.items(): tiny_stable_diffusion(tokenizer, kind).save_pretrained(folder/kind)
