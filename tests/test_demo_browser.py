"The demo in a real browser: what a visitor sees, by mouse, by keyboard, on a phone, and when something is wrong."
import json, os, re, shutil, time

import numpy as np, pytest
from PIL import Image

pytest.importorskip('gradio', reason="the demo is an extra: pip install 'skincancer[demo]'")
playwright = pytest.importorskip('playwright.sync_api', reason='playwright drives the browser: pip install playwright')

from demo_server import Server, bad_files, encoded, noise
from skincancer import demo

CHROME = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = pytest.mark.skipif(not CHROME, reason='neither chromium, chromium-browser nor google-chrome is installed')
DESKTOP, PHONE = dict(viewport=dict(width=1280, height=900)), dict(viewport=dict(width=375, height=740), has_touch=True, is_mobile=True, device_scale_factor=2)


@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROME, args=['--no-sandbox'] if os.name == 'posix' and os.geteuid() == 0 else [])
        yield b
        b.close()


class Visit:
    "A page with its requests and complaints; `with` closes it and looks at both."
    def __init__(self, browser, site, **options):
        self.context = browser.new_context(**(DESKTOP | options))
        self.page, self.url, self.requests, self.errors = self.context.new_page(), site.url, [], []
        self.page.set_default_timeout(60_000)
        self.context.on('request', lambda r: self.requests.append(r.url))
        self.page.on('pageerror', lambda e: self.errors.append(str(e)))
        self.page.on('console', lambda m: self.errors.append(m.text) if m.type == 'error' else None)

    def __enter__(self):
        self.page.goto(self.url)
        self.page.get_by_role('button', name='Ask the model').wait_for()
        self.page.wait_for_function('window.lesion?.dressed')
        return self

    def __exit__(self, kind, *_):
        self.context.close()
        if kind: return
        assert not [u for u in self.requests if not u.startswith((self.url, 'data:', 'blob:'))]
        assert not self.errors

    def choose(self, data, name='spot.png', mime='image/png'): self.page.set_input_files('#choose', dict(name=name, mimeType=mime, buffer=data))
    def example(self): self.page.get_by_role('button', name='Use a drawn example').click(); self.page.get_by_text('is ready. Now ask').wait_for()
    def press(self): self.page.get_by_role('button', name='Ask the model').click()
    def ask(self): self.press(); self.page.get_by_role('heading', name='What the model says').wait_for(); self.page.get_by_text('Done. Most probable').wait_for()
    def js(self, code, *a): return self.page.evaluate(code, *a)
    @property
    def problem(self): self.page.locator('#problem').filter(has_text=re.compile('.')).wait_for(); return self.page.locator('#problem').inner_text()


@pytest.fixture
def visit(browser, site): return lambda **options: Visit(browser, site, **options)


def test_upload_and_result(visit, tmp_path):
    with visit() as v:
        assert 'simulated cohort' in v.page.locator('.head').inner_text()
        v.choose(encoded(demo.draw_example(1, 300), 'JPEG'), 'spot.jpg', 'image/jpeg')
        v.page.locator('#preview').wait_for()
        v.page.get_by_label('Age in years').fill('61')
        v.page.get_by_role('group', name='Has it grown?').get_by_label('yes').check()
        v.ask()
        text = v.page.locator('#result').inner_text()
        for o in (demo.NOTICE, 'remain', 'Most probable', 'Calibrated', 'melanoma', 'in the set', 'Where the model looked', 'Grad-CAM', 'What weighed how much', 'What is known of the patient', 'imulated cohort'): assert o in text, o
        assert re.search(r'out-of-distribution|too few validation pictures', text)
        assert 'A sentence with its source' in v.page.locator('#summary').inner_text()
        assert v.js("[...document.querySelectorAll('#result img')].every(i => i.complete && i.naturalWidth === 320 && i.alt.length > 20)")
        v.page.screenshot(path=tmp_path/'result.png', full_page=True)
    shot = np.asarray(Image.open(tmp_path/'result.png').convert('RGB'))
    assert shot.shape[0] > 1000 and shot.std() > 20


def test_the_notice_cannot_be_missed(visit):
    "On top of the first screen, still there at the very end of the page, and once more beside the result."
    for options in (DESKTOP, PHONE):
        with visit(**options) as v:
            inside = "() => { const r = document.querySelector('.notice').getBoundingClientRect(), e = document.elementFromPoint(innerWidth/2, r.top + r.height/2); return r.top >= -1 && r.bottom <= innerHeight/3 && !!e.closest('.notice') }"
            assert v.js(inside) and demo.NOTICE in v.page.locator('.notice').inner_text()
            v.example(); v.ask()
            v.js('scrollTo(0, document.body.scrollHeight)')
            v.page.wait_for_function('scrollY > 300')
            assert v.js(inside)
            assert demo.NOTICE in v.page.locator('#result .again').inner_text() and demo.NOTICE.lower() in v.page.title()
            assert v.js("parseFloat(getComputedStyle(document.querySelector('.notice b')).fontSize)") >= 16


def test_examples_fill_the_form_and_start_again_empties_it(visit):
    with visit() as v:
        v.example(); v.example()
        assert v.page.get_by_label('Age in years').input_value() == '61' and v.page.get_by_label('leg').is_checked()
        assert 'No real patient' in v.page.locator('#picture-name').inner_text()
        v.ask()
        v.example()
        assert v.page.locator('.outcome.stale').count() == 1      # the old answer no longer belongs to the picture
        v.page.get_by_role('button', name='Start again').click()
        v.page.get_by_role('heading', name='What you will see here').wait_for()
        assert v.page.get_by_label('Age in years').input_value() == '' and not v.page.locator('#preview').is_visible()
        assert v.page.get_by_label('not known').count() == 3 and all(o.is_checked() for o in v.page.get_by_label('not known').all())
        v.press()
        assert 'Choose a picture first' in v.problem


@pytest.mark.parametrize('name', bad_files())
def test_a_file_that_is_no_picture(visit, name):
    data, says = bad_files()[name]
    with visit() as v:
        v.choose(data, f'{name}.png'); v.press()
        assert says in v.problem and not re.search('Traceback|Error:|File "', v.page.locator('body').inner_text())
        assert v.page.locator('#problem').get_attribute('role') == 'alert'
        v.example(); v.ask()                                       # and on it goes
        assert v.page.locator('#problem').inner_text() == ''


def test_a_value_out_of_range_and_a_file_too_large(visit):
    with visit() as v:
        v.example()
        v.page.get_by_label('Age in years').fill('710'); v.press()
        assert 'Age in years' in v.problem and '0 to 120' in v.problem
        sent = len(v.requests)
        v.choose(bytes(11_000_000))
        assert '11.0 MB' in v.problem and '10 MB' in v.problem
        assert len(v.requests) == sent                             # it did not even leave the browser


def test_a_strange_picture_is_warned_of_before_anything_else(browser, record, tmp_path):
    "The same record, with a limit that every picture is beyond."
    from safetensors.numpy import load_file, save_file
    shutil.copytree(record, strict := tmp_path/record.name)
    ref = load_file(record/'reference.safetensors')
    save_file(ref | dict(valid=np.full(100, -1, np.float32)), strict/'reference.safetensors')
    s = Server(strict, tmp_path/'strict')
    try:
        with Visit(browser, s) as v:
            v.choose(encoded(noise(200, 200))); v.ask()
            text = v.page.locator('#result').inner_text()
            assert 'Warning: this picture is unlike' in text and text.index('Warning: this') < text.index('Most probable')
            assert 'unlike' in v.page.locator('#note').inner_text()
            assert not v.js(CONTRAST)
    finally: s.stop()


def test_nothing_stays_in_the_browser(visit):
    "No cookie, no storage, no history of runs; the picture is in a variable of the page alone."
    with visit() as v:
        v.choose(encoded(noise())); v.ask()
        kept = v.js("async () => [document.cookie, Object.entries(localStorage), Object.entries(sessionStorage), (await indexedDB.databases()).map(d => d.name), await caches.keys()].map(o => JSON.stringify(o))")
        assert all(len(o) < 500 and 'image' not in o and 'iVBOR' not in o for o in kept), kept
        assert not [u for u in v.requests if 'upload' in u]


def test_on_a_phone(visit, tmp_path):
    with visit(**PHONE) as v:
        fits = "() => document.scrollingElement.scrollWidth <= innerWidth && [...document.querySelectorAll('.gradio-container *')].every(e => { const r = e.getBoundingClientRect(); return !r.width || r.right <= innerWidth + 1 || e.closest('.sr-only') })"
        assert v.js(fits)
        camera = v.page.locator('#take')
        assert camera.get_attribute('capture') == 'environment' and v.page.get_by_text('Take a picture').is_visible()
        assert v.page.get_by_label('Age in years').get_attribute('inputmode') == 'decimal'
        v.example(); v.page.get_by_role('button', name='Ask the model').tap()
        v.page.get_by_role('heading', name='What the model says').wait_for()
        v.page.wait_for_function("() => { const t = document.querySelector('#outcome-title').getBoundingClientRect().top; return t > 0 && t < innerHeight/2 }")      # taken there
        assert v.js(fits)
        small = v.js("[...document.querySelectorAll('button, .pick label, #fields label:has(input[type=radio]), #fields input[type=text]')].filter(e => e.offsetParent && e.getBoundingClientRect().height < 40).map(e => e.outerHTML.slice(0, 90))")
        assert not small
        v.page.screenshot(path=tmp_path/'phone.png')


def test_by_keyboard_alone(visit):
    with visit() as v:
        seen, keys = [], v.page.keyboard
        def tab():
            keys.press('Tab')
            a = v.js("() => { const e = document.activeElement, o = getComputedStyle(e.type === 'file' ? e.closest('label') : e); return [e.id || e.closest('[id]')?.id || e.tagName, e.type || '', parseFloat(o.outlineWidth) || 0, o.outlineStyle, o.boxShadow] }")
            seen.append(a)
            return a
        def go(until, limit=30):
            for _ in range(limit):
                a = tab()
                if a[0] == until: return
            pytest.fail(f'{until} cannot be reached: {seen}')
        go('choose'); go('example'); keys.press('Enter')
        v.page.get_by_text('is ready. Now ask').wait_for()
        while tab()[1] != 'radio': pass
        keys.press('ArrowRight')                                   # from 'female'
        assert v.page.get_by_label('male', exact=True).is_checked() and not v.page.get_by_label('female', exact=True).is_checked()
        go('go')
        types = [t for _, t, *_ in seen]
        assert types.count('radio') == 3 and ('text' in types or 'textarea' in types)      # one stop per group of buttons
        unseen = [a for a in seen if a[2] < 2 or a[3] == 'none']
        assert not unseen, f'focus cannot be seen on {unseen}'
        keys.press('Enter')
        v.page.wait_for_function("document.activeElement.id === 'outcome-title' && document.activeElement.innerText === 'What the model says'")


def test_everything_has_a_name_and_is_announced(visit):
    with visit() as v:
        v.example(); v.ask()
        nameless = v.js("""() => [...document.querySelectorAll('input, select, textarea, button')].filter(e => e.offsetParent && e.type !== 'hidden')
            .filter(e => !(e.getAttribute('aria-label') || e.innerText || e.title || [...(e.labels || [])].map(l => l.innerText).join('')).trim()).map(e => e.outerHTML.slice(0, 120))""")
        assert not nameless
        groups = v.js("[...document.querySelectorAll('#fields fieldset')].map(f => f.getAttribute('aria-label'))")
        assert groups and all(groups)
        assert v.page.locator('#note').get_attribute('aria-live') == 'polite'
        assert v.js("[...document.querySelectorAll('h1')].length") == 1 and v.js('document.documentElement.lang') == 'en'
        assert v.js("[...document.querySelectorAll('img')].filter(i => i.offsetParent).every(i => i.alt)")


CONTRAST = """() => {
  const rgb = (s) => { const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true}); c.fillStyle = s; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data]; };
  const light = (c) => { const f = c.slice(0, 3).map(v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4); return .2126*f[0] + .7152*f[1] + .0722*f[2]; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
  const out = [];
  for (const e of document.querySelectorAll('.gradio-container *')) {
    if (!e.offsetParent || e.closest('.sr-only') || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const s = getComputedStyle(e), [a, b] = [light(rgb(s.color)), light(behind(e))].sort((p, q) => q - p), ratio = (a + .05)/(b + .05);
    if (ratio < 4.5) out.push([ratio.toFixed(2), s.color, e.textContent.trim().slice(0, 40)]);
  }
  return out;
}"""

@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_can_be_read(visit, scheme):
    "Contrast of at least 4.5 (WCAG 2.2, AA) for all text, in both schemes."
    with visit(color_scheme=scheme) as v:
        assert not v.js(CONTRAST)
        v.choose(encoded(noise(200, 200))); v.ask()
        assert not v.js(CONTRAST)
        v.choose(b'no picture'); v.press(); v.problem
        assert not v.js(CONTRAST)


def test_when_the_server_is_gone_the_page_says_so(browser, record, tmp_path):
    s = Server(record, tmp_path/'short')
    v = Visit(browser, s)
    with v:
        v.example()
        s.stop()
        v.press()
        assert 'gave no answer' in v.problem
        v.errors.clear()                                           # the browser's own, about the connection


def test_nothing_was_written_or_said(site):
    assert site.lines[next(i for i, l in enumerate(site.lines) if l.startswith('Open ')) + 1:] == []
