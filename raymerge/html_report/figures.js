// Charts, the tables of their data, and the controls that choose what both show.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = Object.fromEntries(
    Object.entries(data.rows).map(([name, { fields, rows }]) => [
      name,
      rows.map((values) => Object.fromEntries(fields.map((field, i) => [field, values[i]]))),
    ]),
  );
  const LOG_ERRORS = 1;  // vega.Error, which the page does not have
  const select = document.getElementById("column");
  const boxes = [...document.querySelectorAll("#shown input")];
  const state = {
    column: () => (select ? Number(select.value) : data.column),
    shown: () => boxes.filter((box) => box.checked).map((box) => box.value),
  };

  // The height of a chart whose rows depend on what is shown, or that keeps its proportions; else null.
  const heightOf = ({ rows: step, aspect } = {}, width) => {
    if (aspect) return width * aspect;
    if (!step) return null;
    const tasks = new Set(rows.tasks.filter((row) => row.column === state.column()).map((row) => row.task));
    return tasks.size * (step.task + step.method * Math.max(1, state.shown().length));
  };

  class Figure {
    constructor(figure) {
      this.figure = figure;
      this.element = document.getElementById(figure.name);
      this.details = this.element.querySelector("details.data");
      this.views = [];
      this.details.addEventListener("toggle", () => this.tabulate());
      this.element.querySelector(".save").addEventListener("click", () => this.save());
      this.describe();
    }

    async draw() {
      // expressions are interpreted, since the page's policy evaluates none
      const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, logLevel: LOG_ERRORS };
      const holders = [...this.element.querySelectorAll(".chart > div")];
      for (const [i, chart] of this.figure.charts.entries()) {
        const spec = structuredClone(chart);
        spec.datasets = { ...spec.datasets, [this.figure.rows]: rows[this.figure.rows] };
        spec.config.legend.columns = Math.max(2, Math.floor(holders[i].clientWidth / 150));
        spec.height = heightOf(spec.usermeta, holders[i].clientWidth) ?? spec.height;
        for (const param of spec.params ?? []) if (state[param.name]) param.value = state[param.name]();
        const { view } = await vegaEmbed(holders[i], spec, options);
        this.views.push(view);
        if (spec.usermeta?.aspect) await this.keepProportions(view, spec.usermeta);
      }
    }

    // As the page gets wider or narrower; the chart itself is narrower than what holds it.
    keepProportions(view, usermeta) {
      const keep = () => view.height(heightOf(usermeta, view.width())).runAsync();
      view.addSignalListener("width", keep);
      return keep();
    }

    async update() {
      this.describe();
      this.tabulate();
      for (const [i, view] of this.views.entries()) {
        const { params = [], usermeta } = this.figure.charts[i];
        for (const { name } of params) if (state[name]) view.signal(name, state[name]());
        view.height(heightOf(usermeta, view.width()) ?? view.height());
        await view.runAsync();
      }
    }

    // The sentence on what is shown, below the chart and as its alternative text.
    describe() {
      const reading = this.figure.readings[this.figure.byColumn ? state.column() : 0];
      this.element.querySelector(".reading").textContent = reading;
      for (const chart of this.element.querySelectorAll(".chart")) {
        chart.setAttribute("aria-label", `${this.figure.title}${this.columnName()}. ${reading} The data is in the table below.`);
      }
    }

    columnName() {
      return this.figure.byColumn && select ? `: ${select.selectedOptions[0].textContent}` : "";
    }

    tabulate() {
      if (!this.details.open) return;
      const { figure } = this;
      const mine = rows[figure.rows].filter(
        (row) =>
          (!figure.byColumn || row.column === state.column()) &&
          Object.entries(figure.only ?? {}).every(([name, value]) => row[name] === value),
      );
      const [columns, cells] = figure.fields.length ? [figure.fields, mine.map((row) => figure.fields.map((f) => plain(row[f.name])))] : pivoted(mine);
      this.details.querySelector(".scroll").replaceChildren(reportTables.make(`${figure.title}${this.columnName()}`, columns, cells));
    }

    async save() {
      for (const [i, view] of this.views.entries()) {
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([await view.toSVG()], { type: "image/svg+xml" }));
        link.download = `${[document.title.split(":")[0], this.figure.name, ...(i ? [i + 1] : [])].join("-")}.svg`;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 1000);
      }
    }
  }

  const plain = (value) => (value === true ? "yes" : value === false ? "" : value);

  // Tasks down, methods across, accuracies between them.
  function pivoted(mine) {
    const methods = [...new Set(mine.map((row) => row.method))];
    const tasks = [...new Set(mine.map((row) => row.task))];
    const known = new Map(mine.map((row) => [JSON.stringify([row.task, row.method]), row.accuracy]));
    const columns = [{ title: "Task", kind: "text" }, ...methods.map((title) => ({ title, kind: "number", digits: 1 }))];
    return [columns, tasks.map((task) => [task, ...methods.map((method) => known.get(JSON.stringify([task, method])) ?? null)])];
  }

  const figures = data.figures.map((figure) => new Figure(figure));
  const changed = async () => {
    for (const name of document.querySelectorAll(".column-name")) name.textContent = select.selectedOptions[0].textContent;
    for (const figure of figures) await figure.update();
  };
  const drawn = (async () => {
    for (const figure of figures) await figure.draw();
    document.documentElement.dataset.drawn = "yes";
  })();
  for (const control of [...(select ? [select] : []), ...boxes]) {
    control.addEventListener("change", () => drawn.then(changed));
  }
})();
