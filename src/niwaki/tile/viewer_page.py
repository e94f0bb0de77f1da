"""The viewer's page: one HTML file with its script and style, no network."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>niwaki: scene</title>
<meta name="viewport" content="width=device-width,initial-scale=1">
<style>
body{margin:0;background:#111;color:#eee;font:14px system-ui,sans-serif;overflow:hidden}
canvas{display:block;width:100vw;height:100vh;cursor:grab;touch-action:none}
#panel{position:fixed;top:12px;left:12px;background:#000c;padding:10px 14px;border-radius:8px;max-width:260px;max-height:85vh;overflow:auto}
#panel label{display:block;margin:4px 0}
.sw{display:inline-block;width:12px;height:12px;margin-right:6px;border-radius:2px}
</style></head><body>
<canvas id="c" tabindex="0" aria-label="scene and classes; drag, wheel, plus, minus and arrow keys move"></canvas>
<div id="panel"><label>classes <input id="o" type="range" min="0" max="100" value="45"></label>
<div id="legend"></div><div id="at"></div></div>
<script>
const D=__DATA__,c=document.getElementById('c'),g=c.getContext('2d'),o=document.getElementById('o');
const W=Math.ceil(D.width/D.step),H=Math.ceil(D.height/D.step),kept=new Map();
let zoom=1,x=0,y=0,drag=null,asked=false;
document.getElementById('legend').innerHTML=D.legend.map(([n,k])=>
 `<div><span class="sw" style="background:rgb(${k})"></span>${n}</div>`).join('');
function fit(){c.width=innerWidth;c.height=innerHeight;zoom=Math.min(c.width/W,c.height/H);
 x=(c.width-W*zoom)/2;y=(c.height-H*zoom)/2;ask()}
function ask(){if(!asked){asked=true;requestAnimationFrame(draw)}}
function tile(p){let t=kept.get(p);if(!t){t=new Image();t.onload=ask;t.src=p;kept.set(p,t);
 if(kept.size>600)kept.delete(kept.keys().next().value)}return t}
function layer(name,z){const s=2**(D.depth-1-z)*zoom*D.tile;
 const n=Math.ceil(W/2**(D.depth-1-z)/D.tile),m=Math.ceil(H/2**(D.depth-1-z)/D.tile);
 for(let j=Math.max(0,Math.floor(-y/s));j<m&&y+j*s<c.height;j++)
 for(let i=Math.max(0,Math.floor(-x/s));i<n&&x+i*s<c.width;i++){const t=tile(`${name}/${z}/${i}_${j}.png`);
 if(t.complete&&t.naturalWidth)g.drawImage(t,x+i*s,y+j*s,t.naturalWidth*s/D.tile,t.naturalHeight*s/D.tile)}}
function draw(){asked=false;g.globalAlpha=1;g.fillStyle='#111';g.fillRect(0,0,c.width,c.height);
 g.imageSmoothingEnabled=zoom<2;
 const z=Math.max(0,Math.min(D.depth-1,D.depth-1+Math.ceil(Math.log2(zoom))));
 if(z)layer('scene',0);layer('scene',z);g.globalAlpha=o.value/100;g.imageSmoothingEnabled=false;layer('classes',z)}
function scale(k,px,py){const n=Math.min(32,Math.max(1e-3,zoom*k));x=px-(px-x)*n/zoom;y=py-(py-y)*n/zoom;zoom=n;ask()}
c.onwheel=e=>{e.preventDefault();scale(2**(-e.deltaY/300),e.clientX,e.clientY)};
c.onpointerdown=e=>{drag=[e.clientX-x,e.clientY-y];c.setPointerCapture(e.pointerId)};
c.onpointermove=e=>{if(drag){x=e.clientX-drag[0];y=e.clientY-drag[1];ask()}
 document.getElementById('at').textContent=
 `row ${Math.floor((e.clientY-y)/zoom*D.step)}, column ${Math.floor((e.clientX-x)/zoom*D.step)}`};
c.onpointerup=()=>drag=null;o.oninput=ask;onresize=fit;
onkeydown=e=>{const m={ArrowLeft:[80,0],ArrowRight:[-80,0],ArrowUp:[0,80],ArrowDown:[0,-80]}[e.key];
 if(m){x+=m[0];y+=m[1];ask()}else if(e.key==='+')scale(1.5,c.width/2,c.height/2);
 else if(e.key==='-')scale(1/1.5,c.width/2,c.height/2)};
fit();
</script></body></html>
"""
