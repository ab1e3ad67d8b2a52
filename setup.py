"Package metadata lives in settings.ini; this only hands it to setuptools."
from configparser import ConfigParser
from setuptools import find_packages, setup

cfg = ConfigParser(); cfg.read('settings.ini', encoding='utf-8'); cfg = cfg['DEFAULT']
extras = {k.removesuffix('_requirements'): v.split() for k, v in cfg.items() if k.endswith('_requirements')}

setup(name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
      author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0',
      long_description=open('README.md', encoding='utf-8').read(), long_description_content_type='text/markdown',
      packages=find_packages(include=['skincancer*']), package_data={'skincancer': ['static/*'], 'skincancer.education': ['notes/*.md', 'questions.jsonl']}, python_requires='>=' + cfg['min_python'],
      install_requires=cfg['requirements'].split(), extras_require=extras,
      entry_points={'console_scripts': cfg['console_scripts'].split('\n')})
