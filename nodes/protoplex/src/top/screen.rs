//! The table on a terminal, and what keys do to it.

use std::time::Duration;

use ratatui::Frame;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Alignment, Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table as TableWidget, TableState};

use super::table::{self, HEAD, Table};
use super::width::{self, NOTE};
use crate::cli::Sort;
use crate::output::harmless;

/// In this order a key goes through them.
const SORTS: [(Sort, &str); 5] = [
    (Sort::Name, "name"),
    (Sort::Cpu, "CPU"),
    (Sort::Memory, "memory"),
    (Sort::Connections, "connections"),
    (Sort::Requests, "requests"),
];

/// The columns whose content is numbers.
const NUMBERS: std::ops::Range<usize> = 2..9;

/// Whether it goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Stay,
    Quit,
}

/// What is shown, and how.
pub(super) struct Screen {
    table: Option<Table>,
    sort: Sort,
    is_reversed: bool,
    shows_children: bool,
    is_paused: bool,
    interval: Duration,
    selected: TableState,
    /// How many rows a page has, by the last drawing.
    page: usize,
}

impl Screen {
    pub(super) fn new(sort: Sort, interval: Duration) -> Self {
        Self {
            table: None,
            sort,
            is_reversed: false,
            shows_children: true,
            is_paused: false,
            interval,
            selected: TableState::default(),
            page: 1,
        }
    }

    /// Takes a newer table, unless it is to stand still.
    pub(super) fn update(&mut self, table: Table) {
        if !self.is_paused || self.table.is_none() {
            self.table = Some(table);
            self.order();
        }
    }

    fn order(&mut self) {
        if let Some(table) = &mut self.table {
            table.sort(self.sort, self.is_reversed);
        }
    }

    pub(super) fn take(&mut self, event: &Event) -> Answer {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.press(*key),
            _ => Answer::Stay,
        }
    }

    fn press(&mut self, key: KeyEvent) -> Answer {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if is_control => return Answer::Quit,
            KeyCode::Char('q') | KeyCode::Esc => return Answer::Quit,
            KeyCode::Char('s') => self.next_sort(),
            KeyCode::Char('r') => self.is_reversed = !self.is_reversed,
            KeyCode::Char('c') => self.shows_children = !self.shows_children,
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Down | KeyCode::Char('j') => self.selected.select_next(),
            KeyCode::Up | KeyCode::Char('k') => self.selected.select_previous(),
            KeyCode::PageDown => self.selected.scroll_down_by(self.page as u16),
            KeyCode::PageUp => self.selected.scroll_up_by(self.page as u16),
            KeyCode::Home | KeyCode::Char('g') => self.selected.select_first(),
            KeyCode::End | KeyCode::Char('G') => self.selected.select_last(),
            _ => {}
        }
        self.order();
        Answer::Stay
    }

    fn next_sort(&mut self) {
        let at = SORTS.iter().position(|(sort, _)| *sort == self.sort).unwrap_or_default();
        (self.sort, self.is_reversed) = (SORTS[(at + 1) % SORTS.len()].0, false);
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let parts = [Constraint::Length(2), Constraint::Min(1), Constraint::Length(1)];
        let [above, middle, below] = Layout::vertical(parts).areas(frame.area());
        let Some(table) = &self.table else {
            return frame.render_widget(Paragraph::new("asking the nodes …"), above);
        };
        let width = usize::from(middle.width);
        let parts = table.overview.parts();
        frame.render_widget(Paragraph::new(width::overview(&parts, width)), above);
        let shown = table.rows.iter().filter(|row| self.shows_children || row.child.is_none());
        let rows: Vec<_> = shown.map(|row| (cells(row), row.state.as_str())).collect();
        let texts: Vec<_> = rows.iter().map(|(cells, _)| cells.clone()).collect();
        let columns = width::columns(&texts, width);
        let head = columns.iter().map(|(column, _)| aligned(*column, HEAD[*column].to_owned()));
        let widths = columns.iter().map(|(column, width)| match *column {
            // The last one has what is left.
            NOTE => Constraint::Fill(1),
            _ => Constraint::Length(u16::try_from(*width).unwrap_or(u16::MAX)),
        });
        let drawn = rows.iter().map(|(cells, state)| drawn(cells, state, &columns));
        let widget = TableWidget::new(drawn, widths)
            .header(Row::new(head).style(Style::new().add_modifier(Modifier::REVERSED)))
            .row_highlight_style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED));
        self.page = usize::from(middle.height.saturating_sub(1)).max(1);
        frame.render_stateful_widget(widget, middle, &mut self.selected);
        let help = Line::from(self.help(width)).style(Style::new().fg(Color::DarkGray));
        frame.render_widget(help, below);
    }

    fn help(&self, width: usize) -> String {
        let by = SORTS.iter().find(|(sort, _)| *sort == self.sort).map_or("", |(_, name)| name);
        let order = if self.is_reversed { ", reversed" } else { "" };
        let pace = match self.is_paused {
            true => "paused".to_owned(),
            false => format!("every {:?}", self.interval),
        };
        let parts = [
            "q quit".to_owned(),
            format!("s sort: {by}{order}"),
            format!("p pause: {pace}"),
            "c children".to_owned(),
            "r reverse".to_owned(),
            "↑↓ PgUp PgDn scroll".to_owned(),
        ];
        width::line(&parts, "  ", width)
    }
}

/// As they stand in the table, a child's below its node's.
fn cells(row: &table::Row) -> [String; HEAD.len()] {
    let mut cells = row.cells().map(|text| harmless(&text));
    if row.child.is_some() {
        cells[0].insert_str(0, "  ");
    }
    cells
}

fn drawn(cells: &[String], state: &str, columns: &[(usize, usize)]) -> Row<'static> {
    Row::new(columns.iter().map(|(column, _)| {
        let cell = aligned(*column, cells[*column].clone());
        if *column == 1 { cell.style(style(state)) } else { cell }
    }))
}

fn aligned(column: usize, text: String) -> Cell<'static> {
    let alignment = if NUMBERS.contains(&column) { Alignment::Right } else { Alignment::Left };
    Cell::from(Text::from(text).alignment(alignment))
}

fn style(state: &str) -> Style {
    match state {
        "RUNNING" => Style::new().fg(Color::Green),
        "STARTING" | "STOPPING" | "STOPPED" | "EXITED" => Style::new().fg(Color::Yellow),
        _ => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::roster::Standing;
    use super::super::table::{Absence, Overview, absent};
    use super::*;

    fn silent(node: &str, standing: Standing) -> table::Row {
        absent(node, "proxy", Absence { standing, time: Duration::from_secs(75) })
    }

    fn table() -> Table {
        let proxy = silent("proxy-1", Standing::Here);
        let child = table::Row { child: Some(0), ..proxy.clone() };
        Table { overview: Overview::default(), rows: vec![proxy, silent("live-1", Standing::Here), child] }
    }

    fn lines(screen: &mut Screen, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let cell = |x, y| buffer[(x, y)].symbol().to_owned();
        let line = |y| (0..width).map(|x| cell(x, y)).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    fn key(code: KeyCode) -> Event {
        Event::Key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn the_table_is_drawn_and_keys_change_it() {
        let mut screen = Screen::new(Sort::Name, Duration::from_secs(1));
        assert!(lines(&mut screen, 100, 10)[0].contains("asking the nodes"));
        screen.update(table());
        let drawn = lines(&mut screen, 110, 10);
        assert!(drawn[0].starts_with("protoplex top  no seed leads · 0 of 0 nodes ready"), "{drawn:#?}");
        assert!(drawn[2].starts_with("PROCESS") && drawn[2].contains("STATE") && drawn[2].contains("REQ/S"));
        assert!(drawn[3].starts_with("live-1") && drawn[3].contains("SILENT"), "{drawn:#?}");
        assert!(drawn[4].starts_with("proxy-1") && drawn[5].starts_with("  proxy-1:0"), "{drawn:#?}");
        assert!(drawn[9].contains("sort: name") && drawn[9].contains("every 1s"), "{drawn:#?}");

        assert_eq!(screen.take(&key(KeyCode::Char('c'))), Answer::Stay);
        assert!(!lines(&mut screen, 110, 10).iter().any(|line| line.contains("proxy-1:0")));
        screen.take(&key(KeyCode::Char('r')));
        let drawn = lines(&mut screen, 110, 10);
        assert!(drawn[3].starts_with("proxy-1") && drawn[9].contains("name, reversed"), "{drawn:#?}");
        screen.take(&key(KeyCode::Char('s')));
        assert!(lines(&mut screen, 110, 10)[9].contains("sort: CPU  "));
        for sort in ["memory", "connections", "requests", "name"] {
            screen.take(&key(KeyCode::Char('s')));
            assert!(lines(&mut screen, 110, 10)[9].contains(sort));
        }
        screen.take(&key(KeyCode::Char('p')));
        screen.update(Table { overview: Overview::default(), rows: Vec::new() });
        let drawn = lines(&mut screen, 110, 10);
        assert!(drawn[9].contains("paused") && drawn[3].starts_with("live-1"), "{drawn:#?}");
    }

    #[test]
    fn in_a_usual_window_it_is_said_that_no_seed_leads_and_who_is_unknown_since_when() {
        let mut screen = Screen::new(Sort::Name, Duration::from_secs(1));
        let row = |n: u32| table::Row {
            pid: Some(123_456),
            ..silent(&format!("fileserver-{n}"), Standing::Unknown)
        };
        let overview = Overview {
            nodes: 9,
            ready: 1,
            cpu: 1234.5,
            memory_bytes: 12_345_678_901,
            connections: 123_456,
            requests: 1_234_567.0,
            ..Overview::default()
        };
        screen.update(Table { overview, rows: (10..13).map(row).collect() });
        for width in [80, 60] {
            let drawn = lines(&mut screen, width, 24);
            assert!(drawn[0].starts_with("no seed leads · 1 of 9 nodes ready · "), "{drawn:#?}");
            assert!(!drawn[0].ends_with('·'), "{drawn:#?}");
            assert!(drawn[3].starts_with("fileserver-10 UNKNOWN "), "{drawn:#?}");
            assert!(drawn[3].ends_with(" not heard of for 0:01:15"), "{drawn:#?}");
            assert!(drawn[23].contains("sort: name") && drawn[23].contains("every 1s"), "{drawn:#?}");
        }
    }

    #[test]
    fn it_ends_by_the_usual_keys_and_fits_any_window() {
        let mut screen = Screen::new(Sort::Cpu, Duration::from_secs(1));
        screen.update(table());
        for (width, height) in [(1, 1), (20, 3), (80, 24), (300, 2)] {
            lines(&mut screen, width, height);
        }
        for code in [KeyCode::Down, KeyCode::PageDown, KeyCode::End, KeyCode::Up, KeyCode::Home] {
            assert_eq!(screen.take(&key(code)), Answer::Stay);
            lines(&mut screen, 80, 5);
        }
        assert_eq!(screen.take(&key(KeyCode::Char('q'))), Answer::Quit);
        assert_eq!(screen.take(&key(KeyCode::Esc)), Answer::Quit);
        let control = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(screen.take(&Event::Key(control)), Answer::Quit);
        assert_eq!(screen.take(&Event::Resize(1, 1)), Answer::Stay);
    }
}
