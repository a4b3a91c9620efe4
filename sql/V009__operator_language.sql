-- Touches every row: the kind of change that an empty database cannot prove.
alter table factory.operators add column language text;

update factory.operators
set language = case when phone like '+49%' then 'de' when phone like '+33%' then 'fr' else 'en' end;

alter table factory.operators
    alter column language set not null,
    alter column language set default 'en';
