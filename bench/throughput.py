"""Images per second of the bare model step, of a full training epoch, and of the ordinary fastai pipeline, in one run on one device.

    python bench/throughput.py                                # small, for any machine; --save keeps the numbers for the README
    python bench/throughput.py --backbones efficientnet_lite0 convnext vit --size 224 --batch 128 --images 12800   # on a GPU

The pictures are simulated lesions written as 600 x 450 JPEG files, the form in which HAM10000 is published. Weights are random: speed does not depend on them.
With --compile the bare step is measured a second time through `torch.compile`, without the time to compile, which is printed beside it.
"""
import argparse, os, resource, tempfile, time, warnings
from pathlib import Path

import numpy as np, pandas as pd, torch
from PIL import Image

from skincancer.data.images import Preprocess, build_cache
from skincancer.data.loaders import Augment, FusionData, fusion_dls
from skincancer.data.simulate import Simulation, _shape, _view, draw_lesions, render
from skincancer.models.encoders import create_encoder
from skincancer.models.fusion import create_model
from skincancer.report.readme import save_speed
from skincancer.training.learner import fit, make_learner

warnings.filterwarnings('ignore')
N_TAB, N_CLASSES = 18, 7


def write_pictures(folder, n, distinct=64):
    "n JPEG files; `distinct` different pictures are enough, since nothing looks at them twice."
    rng = np.random.default_rng(0)
    lesions = draw_lesions(Simulation(n_lesions=distinct))
    pictures = [Image.fromarray(render(o, _shape(rng, o.border == 1), _view(rng))[0]).resize((600, 450)) for o in lesions.itertuples()]
    paths = [folder/f'{i:06d}.jpg' for i in range(n)]
    for i, p in enumerate(paths): pictures[i % distinct].save(p, quality=90)
    return paths


def now(device):
    if device.type == 'cuda': torch.cuda.synchronize()
    return time.perf_counter()


def peak(device): return torch.cuda.max_memory_allocated()/2**30 if device.type == 'cuda' else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20


def new_learner(backbone, size, dls):
    encoder = create_encoder(backbone, pretrained=False, size=size)
    return make_learner(dls, create_model('late', encoder, encoder.n_features, N_TAB, N_CLASSES))


def bare_step(learn, size, batch, steps, device, compiled=False):
    "Forward, backward and update on one batch that is already there: same precision, optimiser and memory layout as in training."
    x = torch.rand(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    tab, y = torch.rand(batch, N_TAB, device=device), torch.randint(N_CLASSES, (batch,), device=device)
    learn.create_opt(); learn.model.train()
    model = torch.compile(learn.model) if compiled else learn.model
    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == 'cuda'): loss = learn.loss_func(model(x, tab), y)
        loss.backward(); learn.opt.step(); learn.opt.zero_grad()
    first = now(device)
    for _ in range(3): step()
    start = now(device)
    for _ in range(steps): step()
    return steps*batch/(now(device) - start), start - first


def our_epoch(learn, n, device):
    with learn.no_bar(), learn.no_logging():
        fit(learn, 1, schedule='constant')
        start = now(device); learn.fit(1)
        return n/(now(device) - start)


def drain(dl, device, batches=None):
    "Images per second of a loader with nothing behind it."
    seen, start = 0, now(device)
    for i, b in enumerate(dl):
        seen += len(b[-1])
        if batches and i + 1 == batches: break
    return seen/(now(device) - start)


def ordinary(paths, y, size, batch, workers, device):
    "The pipeline of the fastai tutorials."
    from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, IndexSplitter, Resize, aug_transforms
    n = len(paths)
    block = DataBlock((ImageBlock, CategoryBlock(vocab=list(range(N_CLASSES)))), get_x=lambda i: paths[i], get_y=lambda i: int(y[i]), splitter=IndexSplitter([n - 1]),
                      item_tfms=Resize(size), batch_tfms=aug_transforms(max_rotate=180, max_lighting=.15))
    return block.dataloaders(list(range(n)), bs=batch, num_workers=workers, device=device)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--backbones', nargs='+', default=['efficientnet_lite0']); ap.add_argument('--size', type=int, default=224)
    ap.add_argument('--batch', type=int, default=32); ap.add_argument('--images', type=int, default=512); ap.add_argument('--workers', type=int, default=os.cpu_count())
    ap.add_argument('--compile', action='store_true', help='measure the bare step through torch.compile as well'); ap.add_argument('--save', action='store_true', help='keep what is printed in results/')
    a = ap.parse_args()
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if device.type == 'cuda': torch.backends.cudnn.benchmark = True
    name, lines = torch.cuda.get_device_name() if device.type == 'cuda' else f'CPU, {torch.get_num_threads()} threads', []
    def say(text): lines.append(text); print(text, flush=True)
    say(f'torch {torch.__version__.split("+")[0]}, {a.size} pixels, batch {a.batch}, {a.images} images')
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as d:
        paths, y = write_pictures(Path(d), a.images), rng.integers(0, N_CLASSES, a.images)
        start = time.perf_counter()
        cache = build_cache(pd.DataFrame(dict(image_id=[p.stem for p in paths], path=[str(p) for p in paths])), Preprocess(a.size), cache_dir=d, progress=False)
        say(f'decoding once into the cache: {a.images/(time.perf_counter() - start):,.0f} images/s')
        data = FusionData(cache.array, rng.random((a.images, N_TAB), np.float32), y)
        loaders = lambda: fusion_dls(data, range(a.images), range(a.batch), a.batch, augment=Augment())
        usual = ordinary(paths, y, a.size, a.batch, a.workers, device)
        theirs, ours = drain(usual.train, device), [drain(loaders().train, device) for _ in range(2)][-1]
        say(f'data alone, augmented: ours {ours:,.0f} images/s, ordinary fastai pipeline with {a.workers} workers {theirs:,.0f}: {ours/theirs:.1f} times')
        for backbone in a.backbones:
            if device.type == 'cuda': torch.cuda.reset_peak_memory_stats()
            learn, steps = new_learner(backbone, a.size, loaders()), max(3, min(50, a.images//a.batch))
            bare, _ = bare_step(learn, a.size, a.batch, steps, device)
            epoch = our_epoch(new_learner(backbone, a.size, loaders()), a.images//a.batch*a.batch, device)
            say(f'{backbone}: bare step {bare:,.0f} images/s, full epoch {epoch:,.0f} = {epoch/bare:.0%} of it; peak memory {peak(device):.1f} GiB')
            if not a.compile: continue
            compiled, warm_up = bare_step(new_learner(backbone, a.size, loaders()), a.size, a.batch, steps, device, compiled=True)
            say(f'{backbone} through torch.compile: bare step {compiled:,.0f} images/s = {compiled/bare:.0%} of it; {warm_up:.0f} s until it ran')
    if a.save: print(save_speed('throughput', name, lines).name)


if __name__ == '__main__': main()
