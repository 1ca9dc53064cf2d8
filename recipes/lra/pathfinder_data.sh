# How the scripts of Pathfinder and Path-X come by their images; they source this file after run.sh.
#
# A script sets BENCHMARK (as prepare_pathfinder has it) and RESOLUTION, and for its demo DEMO_SIDE,
# DEMO_IMAGES (the folder that the generator makes) and DEMO_OPTIONS (of the generator).

GENERATE=megalodon_tasks.recipes.lra.pathfinder_generator
PREPARE=megalodon_tasks.recipes.lra.prepare_pathfinder

prepare_data() {
    if ((DEMO)); then
        # small matrices: a second thread gains little, and loses much where others share the cores
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
        PREPARED=$DATA_DIR/demo/prepared
        run_python "$GENERATE" "$DATA_DIR/demo/raw" --resolution "$DEMO_SIDE" "${DEMO_OPTIONS[@]}"
        run_python "$PREPARE" "$DATA_DIR/demo/raw" "$PREPARED" --benchmark "$BENCHMARK" \
            --side "$DEMO_SIDE" --images "$DEMO_IMAGES"
    elif [[ -f $DATA_DIR/dataset.json ]]; then
        PREPARED=$DATA_DIR
    elif [[ -f $DATA_DIR/prepared/dataset.json ]]; then
        # not again, so that what was chosen with the options of the preparation lasts
        PREPARED=$DATA_DIR/prepared
        echo "$PREPARED: prepared before, taken as it is"
    elif has_images "$DATA_DIR"; then
        PREPARED=$DATA_DIR/prepared
        run_python "$PREPARE" "$DATA_DIR" "$PREPARED" --benchmark "$BENCHMARK"
    else
        PREPARED=$DATA_DIR/prepared
        run_python "$GENERATE" "$DATA_DIR/raw" --resolution "$RESOLUTION"
        run_python "$PREPARE" "$DATA_DIR/raw" "$PREPARED" --benchmark "$BENCHMARK"
    fi
}

# has_images FOLDER: the release, a folder of it, or Mega's files; what was generated here is in raw/
has_images() {
    local below
    for below in lra_release curv_contour_length_14 metadata input pathfinder path-x lra; do
        [[ -d $1/$below ]] && return 0
    done
    [[ -d $1 ]] || return 1
    local found
    found=$(find "$1" -maxdepth 6 \( -path "$1/raw" -o -name imgs \) -prune -o \
        -type d -path "*/pathfinder$RESOLUTION/curv_contour_length_14" -print -quit)
    [[ -n $found ]]
}
