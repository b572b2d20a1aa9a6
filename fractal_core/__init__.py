"""A workbench that maps the border between hyperparameters that train and those that do not.

The path of one picture: a `Region` of the plane (two `Axis`) is cut into a `Grid` of points; an
experiment, the grid and a seed are a `Sweep`, whose id is a hash of everything that can change an
answer; `Store.create` makes a run folder of it, `engine` trains its missing units and commits each
once, `Store.image` is the masked map so far, and `figures` draws it.

Floors: a module imports only modules on lower floors, and a test reads this table.

    errors        -1   the one exception that a user is meant to read
    plane          0   Axis, Region, Grid: index <-> cell <-> value, zoom, pitch in ulps
    outcome        0   Outcome, label rule, convergence measure
    machine        0   what this machine and this code are, and its slots
    pulse          0   signs of progress
    known          0   sets whose boundary has a known dimension
    files          0   named bytes under one folder: once, latest, atomic
    redact         0   takes secrets out of what is written
    storage        0   where fetched data and models lie
    messages       0   what a conversation is, and files of them
    memos          0   generated documents with questions and answers
    hub            0   data sets on the Hugging Face Hub
    determinism    0   what it takes for torch to give the same bits twice
    stream         0   the endless order of texts that a seed gives
    transcript     0   what a second model says, beside the chat of the first
    boundary       0   boundary cells, box counts, distance, safety margin
    dimension      1   box-counting dimension with interval, or why there is none
    kernels        1   training loops under one numerical contract
    ticks          1   where an axis is marked, and with which digits
    seeing         1   how far labels can be trusted: flips, last places, distinct values
    nulls          1   smooth, quadratic and coin-flip nulls; the verdict
    sweep          1   Sweep, Unit, the plan of a map, the Experiment protocol, content id
    conversations  1   fixed, tokenised, hashed training sets; the renderer is passed in
    base           1   the small language model that runs start from
    tuner          1   fine-tunes one model again and again from the same weights
    docvqa         1   DocVQA as conversations: made, published, counted
    spelling       1   how a tokenizer spells a text, in colours
    sizes          1   what a language model of some shape holds, costs and needs
    sheet          2   a printed page: sizes, one font, texts that wrap
    straddle       2   base points on a boundary, from a coarse map or along random chords
    pairs          2   flips against distance: cost, partners, dimension with interval
    store          2   a run folder: commit once, missing, image, verify
    tiny           2   TinyNetworks: one hidden layer, one network per grid point
    finetune       2   FineTune: fine-tuning a nanochat language model
    evaluation     2   how good a language model is: answers, likelihoods, intervals
    roughness      2   a map's dimension beside that of its nulls; companions
    tracking       3   Weights & Biases: what of a run is sent, and how
    figures        3   maps for screen and paper
    records        3   the points of a run as a table
    single         3   one fine-tuning run, watched
    rehearsal      3   fine-tuning in processes of their own: same bits? does it fit?
    experiments    3   experiments and presets by name; opens a run folder
    duty           3   who works on a run folder: locks, shares, journal
    outlook        3   where to go next, and how long the rest takes
    heatmap        3   the map on a canvas in a notebook
    network        4   one tiny network, watched
    planner        4   from choices to the recipe of a map, and its cost
    panels         4   trainability, final loss and both boundaries beside each other
    plate          4   several maps on one page
    proof          4   a figure as colour-blind and grey-scale readers see it
    film           4   a smooth zoom through a chain of maps
    charts         4   flips against distance, for screen and paper
    plots          4   charts of dimensions
    errands        4   long commands in the background of a folder
    warm           4   a process that forks runs within milliseconds
    worker         4   one process per slot, which trains units and commits them
    forms          5   what pages are built of: fields, tables, charts, answers to clicks
    agenda         5   what is done next, and what follows from a failure
    stages         5   the stages of nanochat: begun, watched, read
    talk           5   which language models there are, and what they answer
    raylink        5   joins a Ray cluster, or begins one
    local          6   workers on this machine
    engine         6   runs the missing units of a run folder with a crew of workers
    control        6   start, stop and watch a run from outside
    cluster        7   workers on a Ray cluster
    mirror         7   keeps Weights & Biases up to date with a run folder
    survey         7   points beside the map: pairs, floors, reruns, audits
    measuring       7   pairs and seeing as processes of their own, begun from a notebook
    pairing        8   pairs for a run folder: dimension, floors, nulls, verdict
    adaptive       8   maps that compute only their boundary, with an audit
    history        8   labels after many training lengths, from one run per point
    calibration    9   both estimators of a dimension on known sets
    curves          9   charts that are read with the mouse
    sight          9   the seeing of a run folder, and what a zoom must ask it
    bench          9   ratios of speed, contenders taking turns
    findings      10   what is known of the roughness of a run
    explore       10   views of the zoom notebook: addresses, costs, places
    recipe         11   what a figure shows, in the figure: written, read, reopened
    singles       11   single runs: begun, listed, compared
    published     11   the six published windows: printed, and found
    portrait       12   what a view looks like
    press          12   figures of runs: drawn, captioned, with their recipes
    films          12   films of runs: keyframes, cost, made in the background
    watching      12   what the page of a sweep shows and does
    commands       13   the command line, one short file per group
    __main__       14   finds the command

Words: a *point* is one pair of values, a *cell* the small rectangle it stands in the middle of, a
*unit* what is computed and committed together, a *run* training at one point, an *outcome* how it
ended. Missing means not computed; it is a mask, never a value. A run that diverged is a result; a
unit whose process died is not, and stays missing.

Nothing here imports torch: it is loaded only by what trains with it. So is nanochat, the language
model under third_party.
"""

from fractal_core.errors import Refused as Refused
from fractal_core.experiments import PRESETS as PRESETS
from fractal_core.experiments import open_run as open_run
from fractal_core.outcome import Outcome as Outcome
from fractal_core.outcome import Outcomes as Outcomes
from fractal_core.plane import Axis as Axis
from fractal_core.plane import Grid as Grid
from fractal_core.plane import Region as Region
from fractal_core.store import Image as Image
from fractal_core.store import Store as Store
from fractal_core.sweep import Sweep as Sweep
from fractal_core.tiny import TinyNetworks as TinyNetworks
