"The demo's launcher: `python app/app.py`, or `make demo`. The page itself is skincancer.demo."
import argparse, sys


def main(argv=None):
    p = argparse.ArgumentParser(description='Skin lesions: what a model sees. Research and education only, not a diagnosis.')
    p.add_argument('--run', metavar='FOLDER', help='record of a finished run, or its id in runs/; default: a small model of the simulated cohort, trained on the first start')
    p.add_argument('--host', default='127.0.0.1', help='address to listen on; the default can be reached from this machine only')
    p.add_argument('--port', type=int, default=7860, help='default 7860; 0 takes any free port')
    a = p.parse_args(argv)
    if not 0 <= a.port < 65536: p.error(f'--port {a.port} is not between 0 and 65535')
    from skincancer.demo import serve
    try: serve(a.run, a.host, a.port)
    except (OSError, ValueError, ModuleNotFoundError) as e: sys.exit(str(e))


if __name__ == '__main__': main()
