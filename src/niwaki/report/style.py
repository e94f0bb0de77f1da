"""The style sheet of a report: light and dark by the reader's setting, one column on a phone, two on a desk."""

from __future__ import annotations

CSS = """
:root{--page:#f6f5f1;--card:#fff;--ink:#1c2620;--soft:#5f6b63;--line:#dfe2da;--green:#2f6f4f;--pale:#c4dccd;
--red:#b3402a;--blue:#2b5d8c;--amber:#a26a06;--violet:#6d4a8f;--shadow:0 1px 2px #0000000f,0 4px 14px #0000000a}
@media(prefers-color-scheme:dark){:root{--page:#131714;--card:#1c221e;--ink:#e8ece7;--soft:#9aa69e;--line:#313a34;
--green:#6fbf92;--pale:#33513f;--red:#ee8a70;--blue:#7db3e2;--amber:#e0b050;--violet:#bd9be0;--shadow:none}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:36px 24px 64px;display:grid;gap:20px;
grid-template-columns:repeat(2,minmax(0,1fr));align-items:start}
header,.cards,.wide{grid-column:1/-1}
.kicker{margin:0;color:var(--green);font-weight:600;letter-spacing:.06em;text-transform:uppercase;font-size:12px}
h1{margin:2px 0 6px;font-size:30px;line-height:1.2;overflow-wrap:anywhere}
.headline{margin:0 0 10px;font-size:21px;line-height:1.35}
.facts,.say{color:var(--soft);margin:0 0 10px;overflow-wrap:anywhere}.facts b{color:var(--ink);font-weight:600}
.say{font-size:13.5px}
.badge{display:inline-block;padding:1px 9px;border-radius:99px;font-size:12px;font-weight:600;
vertical-align:middle;background:var(--pale);color:var(--ink);letter-spacing:0}
h1 .badge{font-size:13px;padding:3px 11px}.badge.good{background:var(--green);color:var(--card)}
.badge.bad{background:var(--red);color:var(--card)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(158px,1fr));gap:12px}
.card,section{background:var(--card);border:1px solid var(--line);border-radius:12px;box-shadow:var(--shadow)}
.card{padding:14px 16px;display:flex;flex-direction:column}
.card b{font-size:26px;line-height:1.15;font-variant-numeric:tabular-nums;white-space:nowrap}
.card span{font-weight:600;font-size:13.5px}.card small{color:var(--soft);font-size:12px;margin-top:3px}
section{padding:18px 20px;min-width:0}
h2{margin:0 0 6px;font-size:17px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:8px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left;padding-left:0}thead th{color:var(--soft);font-weight:600;font-size:12.5px}
tbody tr:last-child>*{border-bottom:0}td small{color:var(--soft)}
svg{display:block;width:100%;height:auto;margin:0 auto}
svg text{fill:var(--ink);font:12px system-ui,"Segoe UI",Roboto,sans-serif}
svg .label,svg .note{paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round}
svg .tick,svg .name,svg .note{fill:var(--soft)}svg .label{font-weight:600}svg .on{fill:var(--card);font-weight:600}
.grid{stroke:var(--line)}.axis{stroke:var(--soft)}
.limit{stroke:var(--red);stroke-width:1.5;stroke-dasharray:5 4}.floor{stroke:var(--amber);stroke-dasharray:2 4}
.dot{fill:var(--blue);stroke:var(--card);stroke-width:2}.dot.chosen{fill:var(--green)}.dot.baseline{fill:var(--soft)}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.line.c0{stroke:var(--blue)}.line.c1{stroke:var(--green)}.line.c2{stroke:var(--amber)}.line.c3{stroke:var(--violet)}
circle.c0,svg text.c0{fill:var(--blue)}circle.c1,svg text.c1{fill:var(--green)}
rect.c0{fill:var(--blue)}rect.c1{fill:var(--green)}rect.c2{fill:var(--amber)}
circle.c2,svg text.c2{fill:var(--amber)}circle.c3,svg text.c3{fill:var(--violet)}circle.c4{fill:var(--red)}
.before{fill:var(--pale)}.after{fill:var(--green)}
.cell{fill:none;stroke:var(--line);stroke-width:.5}.right{fill:var(--green)}.off{fill:var(--red)}
.tall{max-height:560px;overflow-y:auto}
.pair{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:20px}
.maps{display:grid;gap:14px}.maps img{width:100%;max-width:1200px}
.wrong{display:grid;grid-template-columns:repeat(auto-fill,minmax(104px,1fr));gap:14px}
figure{margin:0;min-width:0}
img{width:100%;aspect-ratio:1;object-fit:contain;border-radius:8px;background:var(--page);
border:1px solid var(--line);image-rendering:pixelated}
figcaption{font-size:13px;line-height:1.35;margin-top:5px;overflow-wrap:anywhere}figcaption small{color:var(--soft)}
.file{display:block;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.notes{margin:0;padding-left:20px;overflow-wrap:anywhere}code{font-size:13px}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:4px 20px;margin:0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
@media(max-width:860px){main{grid-template-columns:minmax(0,1fr);padding:20px 14px 40px}.pair{grid-template-columns:1fr}
section{overflow-x:auto}svg{min-width:470px}
h1{font-size:25px}.headline{font-size:18px}section{padding:14px}dl{grid-template-columns:1fr}dd{margin-bottom:6px}}
@media print{body{background:#fff}section,.card{box-shadow:none;break-inside:avoid}}
"""
